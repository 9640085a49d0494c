#include "quantize/journal.h"

#include <algorithm>
#include <map>
#include <vector>

#include "engine/io/content_hash.h"
#include "engine/io/json.h"
#include "engine/io/output_file.h"
#include "engine/io/process_lock.h"

namespace ballast {
namespace fs = std::filesystem;
namespace {

constexpr char kFolder[] = ".ballast-quantize";
constexpr char kJournal[] = "journal";
constexpr char kLock[] = "lock";
constexpr char kTemporary[] = "new";
constexpr uint64_t kMaxJournal = uint64_t(64) << 20;
constexpr int64_t kMaxRecord = int64_t(1) << 40;
constexpr int kFormat = 2;
constexpr size_t kHashDigits = 16;
constexpr size_t kDifferencesShown = 6;

std::string journal_line(const nlohmann::json& object) {
  const std::string text = object.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return hex(content_hash(text)) + " " + text + "\n";
}

/// The object of a line without its newline. Error for anything but what journal_line made.
nlohmann::json parse_line(std::string_view line) {
  if (line.size() <= kHashDigits || line[kHashDigits] != ' ') throw Error("no hash");
  const std::string_view text = line.substr(kHashDigits + 1);
  if (hex(content_hash(text)) != line.substr(0, kHashDigits)) throw Error("wrong hash");
  return parse_json(text, kJournal);
}

struct Record {
  std::string name;
  uint64_t bytes = 0;
  std::string hash;
  uint64_t line_end = 0;  ///< in the journal
};

/// The journal file of an earlier run, up to its first bad line.
struct Contents {
  uint64_t first_line_end = 0;  ///< 0: not even that one is good
  RunFingerprint fingerprint;
  std::vector<Record> records;
  std::string damage;
};

void take_first_line(Contents& contents, const nlohmann::json& line, uint64_t end) {
  json_int(line, "format", kJournal, kFormat, kFormat);
  const nlohmann::json& parts = json_object(line, "fingerprint", kJournal);
  for (const auto& [name, unused] : parts.items())
    contents.fingerprint[name] = json_string(parts, name.c_str(), kJournal);
  contents.first_line_end = end;
}

void take_record(Contents& contents, const nlohmann::json& line, uint64_t end) {
  Record record{json_string(line, "name", kJournal),
                uint64_t(json_int(line, "bytes", kJournal, 0, kMaxRecord)),
                json_string(line, "hash", kJournal), end};
  for (const Record& other : contents.records)
    if (other.name == record.name) throw Error("named twice");
  contents.records.push_back(std::move(record));
}

Contents read_journal(const fs::path& path) {
  Contents contents;
  const std::string text = read_file(path, kMaxJournal, false);
  for (size_t at = 0; at < text.size();) {
    const size_t newline = text.find('\n', at);
    try {
      if (newline == text.npos) throw Error("torn");
      const nlohmann::json line = parse_line(std::string_view(text).substr(at, newline - at));
      (at == 0 ? take_first_line : take_record)(contents, line, newline + 1);
    } catch (const Error& error) {
      contents.damage = str("its journal is damaged after record ", contents.records.size());
      break;
    }
    at = newline + 1;
  }
  return contents;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (size_t i = 0; i < std::min(parts.size(), kDifferencesShown); ++i) text += (i ? ", " : "") + parts[i];
  return parts.size() > kDifferencesShown ? str(text, " and ", parts.size() - kDifferencesShown, " more")
                                          : text;
}

}  // namespace

struct Journal::State {
  fs::path output, folder;
  bool created_output = false;
  std::optional<ProcessLock> lock;
  bool taken = false;  ///< what is in the folder is this run's
  bool resumed = false;
  std::string damage;
  uint64_t journal_bytes = 0;      ///< of its good lines
  std::optional<OutputFile> file;  ///< the journal, open at its end
  std::vector<Record> records;     ///< in the order of their files
  std::map<std::string, size_t> numbers;

  ~State();
  fs::path file_of(size_t number) const;
  void open_journal(const RunFingerprint& fingerprint, Found found);
  void resume(Contents contents);
  void start_over(const RunFingerprint& fingerprint);
  void remove_strangers() const;
  void write_file(const fs::path& path, std::string_view bytes) const;
  void append_line(const std::string& line);
};

Journal::State::~State() {
  file.reset();
  std::error_code ignored;
  if (taken && records.empty()) fs::remove_all(folder, ignored);
  if (created_output) fs::remove(output, ignored);  // only if empty
}

fs::path Journal::State::file_of(size_t number) const {
  const std::string digits = std::to_string(number + 1);
  return folder / (std::string(digits.size() < 6 ? 6 - digits.size() : 0, '0') + digits);
}

void Journal::State::open_journal(const RunFingerprint& fingerprint, Found found) {
  const fs::path path = folder / kJournal;
  if (found == Found::discard || !fs::exists(path)) return start_over(fingerprint);
  Contents contents = read_journal(path);
  if (contents.first_line_end == 0)
    throw Error(str(path.string(), ": not a journal that this version can read; start over with --force"));
  if (contents.records.empty()) return start_over(fingerprint);
  if (found == Found::refuse)
    throw Error(str(output.string(),
                    ": holds an unfinished run; continue it with --resume, or start over with --force"));
  if (const auto changed = differences(contents.fingerprint, fingerprint); !changed.empty())
    throw Error(str(output.string(), ": cannot resume, the unfinished run there began otherwise: ",
                    joined(changed), "; repeat what it began with, or start over with --force"));
  resume(std::move(contents));
}

void Journal::State::resume(Contents contents) {
  resumed = taken = true;
  damage = std::move(contents.damage);
  for (Record& record : contents.records) {
    const fs::path path = file_of(records.size());
    std::error_code error;
    try {
      if (fs::file_size(path, error) != record.bytes || hex(content_hash_of_files({path})) != record.hash)
        throw Error("changed");
    } catch (const Error&) {
      damage = str("its record ", records.size() + 1, ", of ", shown(record.name), ", is damaged");
      break;
    }
    numbers[record.name] = records.size();
    records.push_back(std::move(record));
  }
  journal_bytes = records.empty() ? contents.first_line_end : records.back().line_end;
  file.emplace(OutputFile::continued(folder / kJournal, journal_bytes));
  remove_strangers();
}

void Journal::State::start_over(const RunFingerprint& fingerprint) {
  taken = true;
  // First, so that a run killed in between leaves no line without its record.
  std::error_code ignored;
  fs::remove(folder / kJournal, ignored);
  remove_strangers();
  const std::string line = journal_line({{"format", kFormat}, {"fingerprint", fingerprint}});
  write_file(folder / kJournal, line);
  journal_bytes = line.size();
}

void Journal::State::remove_strangers() const {
  std::error_code ignored;
  std::vector<fs::path> kept = {folder / kLock, folder / kJournal};
  for (size_t i = 0; i < records.size(); ++i) kept.push_back(file_of(i));
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (std::find(kept.begin(), kept.end(), entry.path()) == kept.end())
      fs::remove_all(entry.path(), ignored);
}

void Journal::State::write_file(const fs::path& path, std::string_view bytes) const {
  const fs::path temporary = folder / kTemporary;
  std::error_code error;
  fs::remove(temporary, error);
  try {
    OutputFile out(temporary);
    out.write(bytes);
    out.finish();
    fs::rename(temporary, path, error);
    if (error) throw RuntimeFailure(str(path.string(), ": cannot rename: ", error.message()));
  } catch (const RuntimeFailure&) {
    fs::remove(temporary, error);  // its space may be what is missing
    throw;
  }
  sync_folder(folder);
}

void Journal::State::append_line(const std::string& line) {
  try {
    if (!file) file.emplace(OutputFile::continued(folder / kJournal, journal_bytes));
    file->write(line);
    file->sync();
  } catch (const RuntimeFailure&) {
    file.reset();  // the next call cuts off what did get there
    throw;
  }
  journal_bytes += line.size();
}

Journal::Journal(const fs::path& output, const RunFingerprint& fingerprint, Found found)
    : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.output = output;
  state.folder = output / kFolder;
  std::error_code error;
  state.created_output = fs::create_directories(output, error);
  if (error) throw Error(str(output.string(), ": cannot create the folder: ", error.message()));
  fs::create_directory(state.folder, error);
  if (error) throw Error(str(output.string(), ": the folder is not writable: ", error.message()));
  if (fs::is_symlink(state.folder))
    throw Error(str(state.folder.string(), ": is a symbolic link, expected a folder"));
  state.lock.emplace(state.folder / kLock, output.string());

  state.open_journal(fingerprint, found);
}

Journal::~Journal() = default;

bool Journal::contains(const std::string& name) const {
  return state_->numbers.count(name) > 0;
}

std::optional<std::string> Journal::find(const std::string& name) const {
  const auto at = state_->numbers.find(name);
  if (at == state_->numbers.end()) return std::nullopt;
  const fs::path path = state_->file_of(at->second);
  std::string bytes = read_file(path, kMaxRecord, false);
  if (hex(content_hash(bytes)) != state_->records[at->second].hash)
    throw Error(str(path.string(), ": changed while it was in use"));
  return bytes;
}

int64_t Journal::count(std::string_view prefix) const {
  return std::count_if(state_->records.begin(), state_->records.end(),
                       [&](const Record& record) { return record.name.starts_with(prefix); });
}

void Journal::append(const std::string& name, std::string_view bytes) {
  State& state = *state_;
  CHECK(!contains(name), name);
  const size_t number = state.records.size();
  Record record{name, bytes.size(), hex(content_hash(bytes)), 0};
  state.write_file(state.file_of(number), bytes);
  state.append_line(journal_line({{"name", name}, {"bytes", record.bytes}, {"hash", record.hash}}));
  record.line_end = state.journal_bytes;
  state.records.push_back(std::move(record));
  state.numbers[name] = number;
}

void Journal::finish() {
  State& state = *state_;
  std::error_code ignored;
  state.file.reset();
  // First: what is left of a removal that is cut short is then no run to resume.
  fs::remove(state.folder / kJournal, ignored);
  fs::remove_all(state.folder, ignored);
  state.records.clear();
  state.numbers.clear();
  state.taken = false;  // another process may be at work there from now on
}

bool Journal::resumed() const {
  return state_->resumed;
}

const std::string& Journal::damage() const {
  return state_->damage;
}

uint64_t Journal::bytes() const {
  uint64_t sum = 0;
  for (const Record& record : state_->records) sum += record.bytes;
  return sum;
}

}  // namespace ballast
