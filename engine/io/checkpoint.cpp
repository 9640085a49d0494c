#include "engine/io/checkpoint.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include "engine/io/json.h"
#include "engine/io/mapped_file.h"

namespace ballast {
namespace fs = std::filesystem;

struct Checkpoint::State {
  fs::path folder;
  nlohmann::json config;
  std::vector<std::string> warnings;
  std::vector<fs::path> files;
  std::vector<MappedFile> maps;  // parallel to files
  std::vector<StoredTensor> tensors;
  std::vector<uint32_t> by_name;  // indices of tensors, sorted by name
};

namespace {

constexpr char kConfig[] = "config.json";
constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr uint64_t kMaxConfigBytes = uint64_t(16) << 20;
constexpr uint64_t kMaxIndexBytes = uint64_t(256) << 20;

bool is_pickle(const fs::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".ckpt";
}

[[noreturn]] void refuse_pickle(const fs::path& path) {
  throw Error(path.string() +
              ": is a pickle, which can run code when it is read, so Ballast never opens one; convert it to "
              "safetensors "
              "with tools/convert_checkpoint.py");
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

/// Names of the folder's files that `wanted` accepts, sorted.
template <class Wanted>
std::vector<std::string> list(const fs::path& folder, const Wanted& wanted) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
    if (wanted(at->path())) names.push_back(at->path().filename().string());
  if (error) throw Error(folder.string() + ": cannot list the folder: " + error.message());
  std::sort(names.begin(), names.end());
  return names;
}

/// The one safetensors file of a folder without an index.
std::string single_file(const fs::path& folder) {
  if (is_there(folder / kSingle)) return kSingle;
  const auto found = list(folder, [](const fs::path& path) { return path.extension() == ".safetensors"; });
  if (found.size() == 1) return found[0];
  if (found.size() > 1)
    throw Error(
        str(folder.string(), ": ", found.size(), " safetensors files, expected ", kIndex, " beside them"));
  const auto pickles = list(folder, is_pickle);
  if (!pickles.empty()) refuse_pickle(folder / pickles[0]);
  throw Error(str(folder.string(), ": expected ", kSingle, " or ", kIndex, ", found neither"));
}

void check_folder(const fs::path& folder) {
  std::error_code error;
  if (fs::is_directory(folder, error)) return;
  if (!is_there(folder)) throw Error(folder.string() + ": no such folder");
  if (is_pickle(folder)) refuse_pickle(folder);
  throw Error(folder.string() + ": expected a folder with config.json and safetensors files, got a file");
}

DType float_dtype(const StoredTensor& tensor, const fs::path& file) {
  if (tensor.dtype == "F32") return DType::f32;
  if (tensor.dtype == "F16") return DType::f16;
  if (tensor.dtype == "BF16") return DType::bf16;
  throw Error(str(file.string(), ": tensor ", shown(tensor.name), ": expected dtype F32, F16 or BF16, got ",
                  shown(tensor.dtype)));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return nlohmann::json(shape).dump();
}

template <class T>
T load(const char* bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes + index * int64_t(sizeof(T)), sizeof(T));
  return value;
}

/// Calls `each` with the raw bits of every element.
template <class T, class Each>
void for_elements(const char* bytes, int64_t count, const Each& each) {
  for (int64_t i = 0; i < count; ++i) each(i, load<T>(bytes, i));
}

}  // namespace

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const fs::path& folder, const CheckpointOptions& options) {
  check_folder(folder);
  const bool follow = !options.strict_paths;
  auto state = std::make_unique<State>();
  state->folder = folder;

  // Found before config.json is read, so that a folder of pickles gets the message that helps.
  ShardIndex index;
  std::vector<std::string> names;
  if (!is_there(folder / kSingle) && is_there(folder / kIndex)) {
    const fs::path path = folder / kIndex;
    index = parse_shard_index(read_file(path, kMaxIndexBytes, follow), path.string());
    std::set<std::string> unique;
    for (const auto& [tensor, file] : index.weight_map) unique.insert(file);
    names.assign(unique.begin(), unique.end());
  } else {
    names = {single_file(folder)};
  }

  const fs::path config = folder / kConfig;
  state->config =
      parse_json(read_file(config, kMaxConfigBytes, follow), config.string(), {.values = uint64_t(1) << 20});
  if (!state->config.is_object())
    throw Error(str(config.string(), ": expected an object, got ", shown_json(state->config)));

  for (const std::string& name : names) {
    const fs::path path = folder / name;
    if (!is_there(path))
      throw Error(str((folder / kIndex).string(), ": weight_map names ", shown(name), ", which is missing"));
    MappedFile map = MappedFile::open(path, follow);
    auto tensors = parse_safetensors(map.bytes(), path.string(), int(state->files.size()));
    if (state->tensors.empty())
      state->tensors = std::move(tensors);
    else
      std::move(tensors.begin(), tensors.end(), std::back_inserter(state->tensors));
    state->files.push_back(path);
    state->maps.push_back(std::move(map));
  }
  Checkpoint checkpoint(std::move(state));
  checkpoint.index_names();
  if (!index.weight_map.empty()) checkpoint.check_index(index);
  return checkpoint;
}

void Checkpoint::index_names() {
  auto& tensors = state_->tensors;
  auto& order = state_->by_name;
  order.resize(tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = uint32_t(i);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
  for (size_t i = 1; i < order.size(); ++i) {
    const StoredTensor &a = tensors[order[i - 1]], &b = tensors[order[i]];
    if (a.name == b.name)
      throw Error(str(state_->files[size_t(std::max(a.file, b.file))].string(), ": tensor ", shown(a.name),
                      " is also in ", state_->files[size_t(std::min(a.file, b.file))].string()));
  }
  for (const StoredTensor& tensor : tensors)
    if (bits_of_dtype(tensor.dtype) == 0)
      state_->warnings.push_back(str(state_->files[size_t(tensor.file)].string(), ": tensor ",
                                     shown(tensor.name), " has the unknown dtype ", shown(tensor.dtype)));
}

void Checkpoint::check_index(const ShardIndex& index) {
  const std::string path = (state_->folder / kIndex).string();
  uint64_t total = 0;
  for (const StoredTensor& tensor : state_->tensors) total += tensor.bytes;
  for (const auto& [name, file] : index.weight_map) {
    const StoredTensor* tensor = find(name);
    if (!tensor || state_->files[size_t(tensor->file)].filename() != file)
      throw Error(str(path, ": weight_map says that tensor ", shown(name), " is in ", file, ", but it is ",
                      tensor ? "in " + state_->files[size_t(tensor->file)].filename().string() : "nowhere"));
  }
  if (index.weight_map.size() != state_->tensors.size())
    state_->warnings.push_back(
        str(path, ": lists ", index.weight_map.size(), " tensors, the files hold ", state_->tensors.size()));
  if (index.total_size && *index.total_size != total)
    state_->warnings.push_back(
        str(path, ": total_size is ", *index.total_size, ", the tensors have ", total, " bytes"));
}

const fs::path& Checkpoint::folder() const {
  return state_->folder;
}
const nlohmann::json& Checkpoint::config() const {
  return state_->config;
}
const std::vector<std::string>& Checkpoint::warnings() const {
  return state_->warnings;
}
const std::vector<fs::path>& Checkpoint::files() const {
  return state_->files;
}
const std::vector<StoredTensor>& Checkpoint::tensors() const {
  return state_->tensors;
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto& order = state_->by_name;
  const auto at = std::lower_bound(
      order.begin(), order.end(), name,
      [&](uint32_t index, std::string_view wanted) { return state_->tensors[index].name < wanted; });
  if (at == order.end() || state_->tensors[*at].name != name) return nullptr;
  return &state_->tensors[*at];
}

const StoredTensor& Checkpoint::require(std::string_view name) const {
  const StoredTensor* tensor = find(name);
  if (!tensor) throw Error(str(state_->folder.string(), ": tensor ", shown(name, 200), " is missing"));
  return *tensor;
}

const char* Checkpoint::bytes(const StoredTensor& tensor) const {
  CHECK(tensor.file >= 0 && size_t(tensor.file) < state_->maps.size());
  const std::string_view file = state_->maps[size_t(tensor.file)].bytes();
  CHECK(tensor.offset <= file.size() && tensor.bytes <= file.size() - tensor.offset, tensor.name);
  return file.data() + tensor.offset;
}

TensorView Checkpoint::view(const StoredTensor& tensor) const {
  const fs::path& file = state_->files[size_t(tensor.file)];
  DType dtype = DType::f32;
  if (tensor.dtype == "I32") {
    dtype = DType::i32;
  } else if (tensor.dtype == "U8") {
    dtype = DType::u8;
  } else if (tensor.dtype == "F32" || tensor.dtype == "F16" || tensor.dtype == "BF16") {
    dtype = float_dtype(tensor, file);
  } else {
    throw Error(str(file.string(), ": tensor ", shown(tensor.name),
                    ": expected dtype F32, F16, BF16, I32 or U8, got ", shown(tensor.dtype)));
  }
  Shape shape;
  if (tensor.shape.size() > Shape::kMaxRank)
    throw Error(str(file.string(), ": tensor ", shown(tensor.name), ": expected at most ", Shape::kMaxRank,
                    " dimensions, got ", shape_text(tensor.shape)));
  for (int64_t size : tensor.shape) shape.dims[size_t(shape.rank++)] = size;
  return {bytes(tensor), dtype, shape};
}

TensorView Checkpoint::weight(std::string_view name, const Shape& shape) const {
  const StoredTensor& tensor = require(name);
  const fs::path& file = state_->files[size_t(tensor.file)];
  (void)float_dtype(tensor, file);
  if (!std::equal(tensor.shape.begin(), tensor.shape.end(), shape.dims.begin(),
                  shape.dims.begin() + shape.rank))
    throw Error(str(file.string(), ": tensor ", shown(name), ": expected shape ", shape.text(), ", got ",
                    shape_text(tensor.shape)));
  return view(tensor);
}

std::vector<float> Checkpoint::floats(const StoredTensor& tensor) const {
  const DType dtype = float_dtype(tensor, state_->files[size_t(tensor.file)]);
  const char* const data = bytes(tensor);
  const int64_t count = tensor.elements();
  std::vector<float> out(static_cast<size_t>(count));
  if (dtype == DType::f32) {
    if (count > 0) std::memcpy(out.data(), data, tensor.bytes);
  } else if (dtype == DType::f16) {
    for_elements<uint16_t>(data, count, [&](int64_t i, uint16_t bits) { out[size_t(i)] = f16_to_f32(bits); });
  } else {
    for_elements<uint16_t>(data, count,
                           [&](int64_t i, uint16_t bits) { out[size_t(i)] = bf16_to_f32(bits); });
  }
  return out;
}

NonFinite Checkpoint::non_finite(const StoredTensor& tensor) const {
  NonFinite found;
  const char* const data = bytes(tensor);
  // Non-finite means all exponent bits set, in every one of these formats.
  const auto scan = [&]<class T>(T exponent) {
    for_elements<T>(data, tensor.elements(), [&](int64_t i, T bits) {
      if ((bits & exponent) == exponent && found.count++ == 0) found.first = i;
    });
  };
  if (tensor.dtype == "F64") scan(uint64_t{0x7FF0000000000000});
  if (tensor.dtype == "F32") scan(uint32_t{0x7F800000});
  if (tensor.dtype == "F16") scan(uint16_t{0x7C00});
  if (tensor.dtype == "BF16") scan(uint16_t{0x7F80});
  return found;
}

void Checkpoint::release(const StoredTensor& tensor) const {
  (void)bytes(tensor);
  state_->maps[size_t(tensor.file)].release(tensor.offset, tensor.bytes);
}

void Checkpoint::check_intact() const {
  for (const MappedFile& map : state_->maps) map.check_intact();
}

}  // namespace ballast
