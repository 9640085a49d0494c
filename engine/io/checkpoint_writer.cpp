#include "engine/io/checkpoint_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "engine/io/json.h"
#include "engine/io/output_file.h"

namespace ballast {
namespace fs = std::filesystem;
namespace {

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kTemporary[] = ".ballast-writing";
constexpr size_t kBuffer = size_t(4) << 20;
constexpr uint64_t kMaxSideFile = uint64_t(1) << 30;

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

/// Names in `folder` that make it a checkpoint.
std::vector<std::string> checkpoint_files(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name == "config.json" || name == kIndex || at->path().extension() == ".safetensors")
      names.push_back(name);
  }
  if (error) throw Error(folder.string() + ": cannot list the folder: " + error.message());
  std::sort(names.begin(), names.end());
  return names;
}

/// The temporary folder, locked for as long as its writer lives: a folder without a lock was left by a killed
/// run.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(fs::path path) : path_(std::move(path)) {
    std::error_code error;
    fs::create_directory(path_, error);
    if (!error) lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (error || lock_ < 0)
      throw Error(str(path_.parent_path().string(),
                      ": the folder is not writable: ", error ? error.message() : std::strerror(errno)));
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(lock_);
      throw Error(path_.parent_path().string() + ": another process is writing this folder");
    }
    for (const auto& old : fs::directory_iterator(path_, error)) {
      std::error_code ignored;
      fs::remove_all(old.path(), ignored);
    }
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
    ::close(lock_);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  int lock_ = -1;
};

struct Shard {
  std::string name;
  std::vector<StoredTensor> tensors;
};

std::string shard_name(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  const auto padded = [](size_t number) {
    const std::string digits = std::to_string(number);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return str("model-", padded(index + 1), "-of-", padded(count), ".safetensors");
}

/// Fills shards in the order of adding, so that a layer's tensors stay together; inside a shard larger
/// elements come first, so that every tensor is aligned to its elements.
std::vector<Shard> plan_shards(const std::vector<StoredTensor>& tensors, uint64_t max_bytes) {
  std::vector<Shard> shards(1);
  uint64_t filled = 0;
  for (const StoredTensor& tensor : tensors) {
    if (filled > 0 && filled + tensor.bytes > max_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().tensors.push_back(tensor);
    filled += tensor.bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].name = shard_name(i, shards.size());
    std::sort(shards[i].tensors.begin(), shards[i].tensors.end(),
              [](const StoredTensor& a, const StoredTensor& b) {
                const int bits_a = bits_of_dtype(a.dtype), bits_b = bits_of_dtype(b.dtype);
                return bits_a != bits_b ? bits_a > bits_b : a.name < b.name;
              });
  }
  return shards;
}

}  // namespace

struct CheckpointWriter::State {
  fs::path folder;
  Options options;
  bool created_folder = false;
  std::optional<TemporaryFolder> temporary;
  std::optional<OutputFile> spool;
  std::vector<StoredTensor> tensors;  // offset: in the spool
  std::set<std::string> names;
  std::vector<std::string> side_files;  // already in the temporary folder
  bool finished = false;
  bool incomplete =
      false;  // the last tensor's data are not all there: its write failed, and so would the rest

  /// Runs `write` and completes the message of what fails with the space that is needed.
  template <class Write>
  void guarded(const Write& write) {
    try {
      write();
    } catch (const RuntimeFailure& failure) {
      const uint64_t bytes = tensor_bytes();
      throw RuntimeFailure(str(failure.what(), "; writing ", folder.string(), " needs ",
                               bytes + bytes / 20 + (1 << 20), " bytes so far and has ", free_space(folder),
                               " left"));
    }
  }
  uint64_t tensor_bytes() const { return spool ? spool->size() : 0; }

  void write_small(const std::string& name, std::string_view content) {
    OutputFile file(temporary->path() / name);
    file.write(content);
    file.finish(options.durable);
  }

  void write_shard(const Shard& shard) {
    OutputFile file(temporary->path() / shard.name);
    file.write(safetensors_header(shard.tensors));
    std::vector<char> buffer(kBuffer);
    for (const StoredTensor& tensor : shard.tensors) {
      for (uint64_t done = 0; done < tensor.bytes; done += kBuffer) {
        const size_t here = size_t(std::min<uint64_t>(kBuffer, tensor.bytes - done));
        spool->read_at(tensor.offset + done, buffer.data(), here);
        file.write({buffer.data(), here});
        // Given back piece by piece, so that the disk never holds two copies of everything.
        spool->discard(tensor.offset + done, here);
      }
    }
    file.finish(options.durable);
  }

  void publish(const std::string& name) {
    std::error_code error;
    fs::rename(temporary->path() / name, folder / name, error);
    if (error) throw RuntimeFailure(str((folder / name).string(), ": cannot rename: ", error.message()));
  }

  void sync() const {
    if (options.durable) sync_folder(folder);
  }

  void remove_old(const std::string& name) {
    std::error_code error;
    fs::remove(folder / name, error);
    if (error) throw RuntimeFailure(str((folder / name).string(), ": cannot remove: ", error.message()));
  }
};

CheckpointWriter::CheckpointWriter(fs::path folder, const Options& options)
    : state_(std::make_unique<State>()) {
  state_->folder = std::move(folder);
  state_->options = options;
  std::error_code error;
  state_->created_folder = fs::create_directories(state_->folder, error);
  if (error) throw Error(str(state_->folder.string(), ": cannot create the folder: ", error.message()));
  const auto old = checkpoint_files(state_->folder);
  if (!old.empty() && !options.overwrite)
    throw Error(str(state_->folder.string(), ": already holds ", old[0],
                    "; choose another folder, or overwrite it with --force"));
  state_->temporary.emplace(state_->folder / kTemporary);
  state_->guarded([&] { state_->spool.emplace(state_->temporary->path() / "spool"); });
}

CheckpointWriter::~CheckpointWriter() {
  state_->spool.reset();
  state_->temporary.reset();
  std::error_code ignored;
  if (state_->created_folder && !state_->finished) fs::remove(state_->folder, ignored);  // only if empty
}

void CheckpointWriter::add(const std::string& name, const std::string& dtype,
                           const std::vector<int64_t>& shape, const void* data) {
  const int bits = bits_of_dtype(dtype);
  CHECK(bits != 0, name, ": dtype ", dtype);
  StoredTensor tensor{.name = name, .dtype = dtype, .shape = shape};
  CHECK(tensor.elements() * bits % 8 == 0, name);
  tensor.bytes = uint64_t(tensor.elements()) * uint64_t(bits) / 8;
  begin(tensor);
  state_->guarded([&] { state_->spool->write({static_cast<const char*>(data), tensor.bytes}); });
  state_->incomplete = false;
}

void CheckpointWriter::copy(const Checkpoint& source, const StoredTensor& tensor) {
  begin(tensor);
  const char* const data = source.bytes(tensor);
  std::vector<char> buffer(size_t(std::min<uint64_t>(kBuffer, tensor.bytes)));
  for (uint64_t done = 0; done < tensor.bytes; done += buffer.size()) {
    const size_t here = size_t(std::min<uint64_t>(buffer.size(), tensor.bytes - done));
    // Through memory of our own: a system call that reads a lost page of the map fails instead of faulting.
    std::memcpy(buffer.data(), data + done, here);
    state_->guarded([&] { state_->spool->write({buffer.data(), here}); });
  }
  source.release(tensor);
  source.check_intact();
  state_->incomplete = false;
}

void CheckpointWriter::begin(const StoredTensor& tensor) {
  CHECK(!state_->finished && !state_->incomplete);
  CHECK(tensor.name != "__metadata__" && state_->names.insert(tensor.name).second, tensor.name);
  state_->tensors.push_back(tensor);
  state_->tensors.back().offset = state_->spool->size();
  state_->incomplete = true;
}

void CheckpointWriter::copy_file(const fs::path& source_folder, const std::string& file_name) {
  if (is_there(source_folder / file_name))
    add_file(file_name, read_file(source_folder / file_name, kMaxSideFile));
}

void CheckpointWriter::copy_side_files(const fs::path& source_folder) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                           "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
                           "chat_template.jinja", "generation_config.json", "preprocessor_config.json"})
    copy_file(source_folder, name);
}

void CheckpointWriter::add_file(const std::string& file_name, const std::string& content) {
  CHECK(!state_->finished);
  const bool plain = !file_name.empty() && fs::path(file_name).filename() == file_name && file_name != "." &&
                     file_name != "..";
  const bool ours = file_name == "config.json" || file_name == kIndex || file_name == "spool" ||
                    file_name.ends_with(".safetensors");
  CHECK(plain && !ours, file_name);
  auto& names = state_->side_files;
  CHECK(std::find(names.begin(), names.end(), file_name) == names.end(), file_name);
  state_->guarded([&] { state_->write_small(file_name, content); });
  names.push_back(file_name);
}

void CheckpointWriter::finish(const nlohmann::json& config) {
  State& state = *state_;
  CHECK(!state.finished && !state.incomplete);
  const std::vector<Shard> shards = plan_shards(state.tensors, state.options.max_shard_bytes);
  std::vector<std::string> names;
  state.guarded([&] {
    nlohmann::json index = {{"metadata", {{"total_size", tensor_bytes()}}},
                            {"weight_map", nlohmann::json::object()}};
    for (const Shard& shard : shards) {
      state.write_shard(shard);
      names.push_back(shard.name);
      for (const StoredTensor& tensor : shard.tensors) index["weight_map"][tensor.name] = shard.name;
    }
    names.insert(names.end(), state.side_files.begin(), state.side_files.end());
    if (shards.size() > 1) {
      state.write_small(kIndex, index.dump(2) + "\n");
      names.push_back(kIndex);
    }
    state.write_small("config.json", config.dump(2) + "\n");

    // From here to the last rename the folder has no config.json, so it does not look loadable.
    const auto old = checkpoint_files(state.folder);
    if (std::find(old.begin(), old.end(), "config.json") != old.end()) {
      state.remove_old("config.json");
      state.sync();
    }
    for (const std::string& name : old)
      if (name != "config.json" && std::find(names.begin(), names.end(), name) == names.end())
        state.remove_old(name);
    for (const std::string& name : names) state.publish(name);
    state.sync();
    state.publish("config.json");
    state.sync();
  });
  state.finished = true;
  state.spool.reset();
  state.temporary.reset();
}

uint64_t CheckpointWriter::tensor_bytes() const {
  return state_->tensor_bytes();
}

void CheckpointWriter::require_space(uint64_t bytes) const {
  const uint64_t needed = bytes + bytes / 20, left = free_space(state_->folder);
  if (left < needed)
    throw RuntimeFailure(
        str(state_->folder.string(), ": needs ", needed, " bytes of free space, has ", left));
}

void require_other_folder(const fs::path& source, const fs::path& output) {
  std::error_code error;
  if (fs::equivalent(source, output, error) && !error)
    throw Error(str(output.string(), ": expected another folder than the source ", source.string(),
                    ", whose files are in use"));
}

}  // namespace ballast
