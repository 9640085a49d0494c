// What a client sends. The first byte chooses: 'h' the bytes of HTTP requests, 't' and 'd' the bodies of /tokenize and
// /detokenize, 'm' of /v1/chat/completions, 'l' of /completion, any other of /v1/completions. What is accepted is
// within every limit that the engine relies on; what is refused is a JSON error of one line.
#include <cmath>
#include <cstdlib>

#include "engine/io/tokenizer_utf8.h"
#include "engine/runtime/text_stream.h"
#include "engine/server/api_error.h"
#include "engine/server/http_reader.h"
#include "engine/server/token_requests.h"

namespace {

using namespace ballast;
using namespace ballast::server;

constexpr int64_t kVocab = 258, kContext = 512;

void require(bool condition) {
  if (!condition) std::abort();
}

/// Ids 0 and 1 begin and end a text, id 2 + b is byte b.
class ByteTokenizer : public Tokenizer {
 public:
  ByteTokenizer() {
    for (size_t byte = 0; byte < 256; ++byte) bytes_ += char(byte);
  }
  std::vector<int32_t> encode(std::string_view text, bool add_special) const override {
    std::vector<int32_t> ids;
    if (add_special) ids.push_back(0);
    for (const char byte : text) ids.push_back(2 + uint8_t(byte));
    return ids;
  }
  std::string_view token_bytes(int32_t id) const override {
    return id < 2 ? std::string_view(id == 0 ? "<s>" : "</s>")
                  : std::string_view(bytes_).substr(size_t(id) - 2, 1);
  }
  bool is_special(int32_t id) const override { return id < 2; }
  int64_t vocabulary_size() const override { return kVocab; }
  std::optional<int32_t> bos_id() const override { return 0; }
  std::optional<int32_t> eos_id() const override { return 1; }

 private:
  std::string bytes_;
};

bool is_valid_utf8(std::string_view text) {
  return valid_utf8_prefix(text) == text.size();
}

struct Read {
  RequestReader::State state;
  int status;
  std::string reason, method, path, query, body;
  Headers headers;
  size_t taken;
  bool operator==(const Read&) const = default;
};

Read read(std::string_view bytes, size_t size) {
  static const ReadLimits kLimits{
      .request_line = 200, .head = 400, .headers = 8, .body = 600, .image_body = 700};
  RequestReader reader(kLimits);
  size_t taken = 0;
  while (taken < bytes.size() && reader.state() != RequestReader::State::done &&
         reader.state() != RequestReader::State::failed)
    taken += reader.feed(bytes.substr(taken, size));
  Read result{.state = reader.state(), .status = reader.status(), .reason = reader.reason(), .taken = taken};
  if (reader.state() == RequestReader::State::failed) {
    require(result.status >= 400 && result.status < 600 && reason_phrase(result.status) != "Unknown");
    require(result.reason.find('\n') == result.reason.npos && is_valid_utf8(result.reason));
    result.taken = 0;  // how far it read ahead of the fault does not matter
  }
  if (reader.state() != RequestReader::State::done) return result;
  HttpRequest request = reader.take();
  result.method = request.method, result.path = request.path, result.query = request.query;
  result.body = request.body, result.headers = request.headers;
  require(!request.path.empty() && request.path.find('?') == request.path.npos);
  const bool image = request.header("content-type").size() >= 6;
  require(request.body.size() <= (image ? kLimits.image_body : kLimits.body));
  require(request.headers.size() <= kLimits.headers);
  for (const auto& [name, value] : request.headers)
    for (const char letter : name + value) require(letter != '\r' && letter != '\n' && letter != '\0');
  require(request.query_value("top").size() <= request.query.size());
  require(percent_decoded(request.path).size() <= request.path.size());
  return result;
}

// One connection's requests, each the same however its bytes are cut.
void read_requests(std::string_view bytes) {
  for (int count = 0; count < 4 && !bytes.empty(); ++count) {
    const Read whole = read(bytes, bytes.size());
    for (const size_t size : {1, 7}) require(read(bytes, size) == whole);
    if (whole.state != RequestReader::State::done) return;
    require(whole.taken > 0);
    bytes.remove_prefix(whole.taken);
  }
}

void check_prompt(const Prompt& prompt, const CompletionRequest& request, const ApiLimits& limits) {
  require(!prompt.ids.empty());
  for (const int32_t id : prompt.ids) require(id >= 0 && id < kVocab);
  const int64_t count = tokens_to_generate(request, prompt, limits);
  require(count >= 0 && int64_t(prompt.ids.size()) + count <= kContext && request.params.min_tokens <= count);
  if (!request.echo) return;
  require(is_valid_utf8(prompt.text) && prompt.offsets.size() == prompt.ids.size());
  for (size_t i = 1; i < prompt.offsets.size(); ++i) require(prompt.offsets[i - 1] <= prompt.offsets[i]);
  require(prompt.offsets.back() <= count_characters(prompt.text));
}

void parse(Dialect dialect, std::string_view body, const ApiLimits& limits) {
  const CompletionRequest request = parse_completion(dialect, body, limits);
  require(!request.prompts.empty() && request.n >= 1 && request.best_of >= request.n);
  require(request.sequences() <= limits.max_choices &&
          request.stop.size() <= limits.max_stops + limits.chat->stop().size());
  require(request.logprobs >= -1 && request.logprobs <= 20);
  for (const Prompt& prompt : request.prompts) {
    check_prompt(prompt, request, limits);
    GenerationParams params = request.params;
    params.max_tokens = tokens_to_generate(request, prompt, limits);
    params.sampling.logprobs = request.logprobs;
    params.check();  // what is accepted here, the engine accepts
  }
  TextStream stream(StreamDecoder(*limits.tokenizer), request.stop);
  std::string text;
  for (const int32_t id : request.prompts[0].ids) text += stream.push(id);
  require(is_valid_utf8(text + stream.flush()));
  for (const std::string& stop : request.stop) require(text.find(stop) == text.npos);
}

void answer(char kind, std::string_view body, const ApiLimits& limits) {
  switch (kind) {
    case 't':
      require(tokenize_request(body, limits)["count"].is_number_integer());
      return;
    case 'd':
      require(is_valid_utf8(detokenize_request(body, limits)["prompt"].get<std::string>()));
      return;
    case 'm':
      return parse(Dialect::chat, body, limits);
    case 'l':
      return parse(Dialect::llama, body, limits);
    default:
      return parse(Dialect::completions, body, limits);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static const ByteTokenizer kTokenizer;
  static const ChatTemplate kChat(nlohmann::json{
      {"user", "U{content}|"}, {"assistant", "A{content}|"}, {"answer", "A"}, {"stop", {"|"}}});
  static const ApiLimits kLimits{.tokenizer = &kTokenizer,
                                 .model = "m",
                                 .context = kContext,
                                 .usable_vocab = kVocab,
                                 .chat = &kChat,
                                 .max_choices = 16};
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 'h') {
    read_requests(text);
    return 0;
  }
  std::optional<ApiError> refusal;
  try {
    answer(char(data[0]), text, kLimits);
  } catch (const ApiError& error) {
    refusal = error;
  } catch (const Error& error) {
    refusal = ApiError(400, error.what());
  }
  if (!refusal) return 0;
  const HttpResponse response = refusal->response();
  require(response.status >= 400 && response.status < 500 && response.body.size() < 4000);
  const auto error = nlohmann::json::parse(response.body).at("error");
  require(error.at("message").get<std::string>().find('\n') == std::string::npos);
  require(error.at("type") == (response.status == 404 ? "not_found_error" : "invalid_request_error"));
  return 0;
}
