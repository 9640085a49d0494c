"""Token ids from Hugging Face transformers and from sentencepiece's own package.

Writes into OUT_DIR/tokenizer: goldens.json (short cases in full; of long texts the number of ids and the SHA-256 of the
ids as little-endian int32), two spellings of a tiny tokenizer.json, and a tiny sentencepiece model. Reads torture.txt
there, the bundled model's tokenizer and, with a folder of public data, OPT's vocabulary and WikiText-2's test text.
"""

import contextlib
import hashlib
import io
import json
import shutil
import struct
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo"

OPT_CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_bos_token": True,
    "add_prefix_space": False,
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
}

CASES = [
    "",
    " ",
    "Hello world",
    " Hello  world\n\n",
    "I'm sure they'll've said 'tis DON'T",
    "a</s>b <pad> <unk> </s>",
    "tab\tcr\rcrlf\r\nnbsp\u00a0nel\u0085ls\u2028\u3000x",
    "naïve café 12345 ½ ٣٤ 日本語 Привет 👩‍👩‍👧 e\u0301",
    "a\u180eb \u1c89\U00010d40 \U0001cccc",
    "\x00\x01\x7f",
]

# Exercises the flags of added tokens.
FLAG_CASES = [
    "one<left> two  <left>three",
    "one <right>  two<right>\n\t three",
    "a word inside words, word.word _word wordé (word)",
    "word\u0301 \u0301word word\U00011f51 word\U00013447 \U0001d2c0word \u24b6word -word-",
    "a<norm>b<normal>c <bos><bos>",
    "<norm<left>al> \u3000<left>\u2003<right>\u00a0 x",
]

# Written for this file.
TRAINING_TEXT = """
A small ship leaves the harbour at dawn. The crew loads stones into the hold, because an empty ship rolls too much.
When the wind grows, the heavy stones keep the keel down, and the ship stands even in the waves.
The captain weighs every stone and writes the number in a book: 12, 7, 31, 105, 2048.
"More weight to the left," she says, "or we'll lean to the right!" They're quick, and the ship comes upright again.
Numbers lose a little when they are rounded; what was lost can be put back as one small weight per row.
In the evening the lights of the town shine on the water. Nobody remembers the stones, but without them nothing stands.
Le navire quitte le port à l'aube. Das Schiff verlässt den Hafen. Корабль выходит из гавани.
while (ship.leans()) { ship.load(stone); count += 1; }  // until it is even
""".strip()

NORMALIZATION_RULES = "FB01\t66 69\nFB02\t66 6C\nC4\t41 308\n3000\t20\nA0\t20\n"


def summary(ids):
    return {"count": len(ids), "sha256": hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()}


def cases(encode, texts):
    return [{"text": text, "ids": encode(text)} for text in texts]


def wikitext(path):
    """The text as it is, and as the data set is evaluated: rows (with their newline, or empty) joined by two newlines."""
    raw = path.read_bytes().decode()
    rows = [line + "\n" if line.strip() else "" for line in raw.split("\n")[:-1]]
    return {"wikitext2_raw": raw, "wikitext2_joined": "\n\n".join(rows)}


def transformers_goldens(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    golden = {name: summary(tokenizer(text)["input_ids"]) for name, text in texts.items()}
    golden["cases"] = cases(lambda text: tokenizer(text)["input_ids"], CASES)
    return golden


def opt_goldens(source, texts):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(source / name, folder)
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(OPT_CONFIG))
        return transformers_goldens(folder, texts)


def tiny_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<bos>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT.split("\n"), trainer)
    tokenizer.add_tokens([
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("<norm>", normalized=True),
        AddedToken("<normal>", normalized=True),
    ])
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return tokenizer


def write_tiny(out_dir):
    tokenizer = tiny_tokenizer()
    spelled = json.loads(tokenizer.to_str())
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in spelled["model"]["merges"]]
    for name, merges in (("tiny_pairs", pairs), ("tiny_strings", [" ".join(pair) for pair in pairs])):
        spelled["model"]["merges"] = merges
        (out_dir / name).mkdir(exist_ok=True)
        (out_dir / name / "tokenizer.json").write_text(json.dumps(spelled, ensure_ascii=False) + "\n")
    return cases(lambda text: tokenizer.encode(text).ids, CASES + FLAG_CASES)


def write_sentencepiece(out_dir):
    folder = out_dir / "sentencepiece"
    folder.mkdir(exist_ok=True)
    model = io.BytesIO()
    # File names become part of the model, so they are the same every time.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        Path("rules.tsv").write_text(NORMALIZATION_RULES)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINING_TEXT.split("\n")), model_writer=model, vocab_size=400,
            model_type="unigram", byte_fallback=True, normalization_rule_tsv="rules.tsv", character_coverage=1.0,
            user_defined_symbols=["<mark>"], num_threads=1, minloglevel=2)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}) + "\n")
    texts = [text for text in CASES if "</s>" not in text] + [
        "The heavy stones keep the keel down, 2048 times.",
        "a<mark>b  two spaces ",
        "ﬁt the ﬂoor; Ärger\u3000x",
    ]
    return cases(lambda text: [processor.bos_id()] + processor.encode(text), texts)


def main(out_dir, shared=None):
    out_dir = Path(out_dir) / "tokenizer"
    texts = {"torture": (out_dir / "torture.txt").read_bytes().decode()}
    golden_path = out_dir / "goldens.json"
    golden = json.loads(golden_path.read_text()) if golden_path.exists() else {}
    golden["tiny"] = write_tiny(out_dir)
    golden["sentencepiece"] = write_sentencepiece(out_dir)
    if shared:  # without it the committed values stay
        texts |= wikitext(Path(shared) / "data" / "wikitext-2-raw" / "wiki.test.raw")
        golden["opt"] = opt_goldens(Path(shared) / "data" / "opt-tokenizer", texts)
        golden["demo"] = transformers_goldens(DEMO, texts)
    lines = []
    for name in sorted(golden):
        body = json.dumps(golden[name], sort_keys=True).replace('{"ids"', '\n{"ids"')
        lines.append(f'"{name}": {body}')
    golden_path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
