#include "engine/io/checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>

#include "engine/io/mapped_file.h"
#include "tests/support/expect_error.h"
#include "tests/support/safetensors_bytes.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;

/// One U8 tensor `name` of two bytes.
std::string one_tensor(const std::string& name) {
  return safetensors_bytes("{\"" + name + R"(":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2);
}
std::string index_json(const std::string& map, const std::string& metadata = R"({"total_size":4})") {
  return R"({"metadata":)" + metadata + R"(,"weight_map":)" + map + "}";
}

/// A file of one tensor whose bytes are `values`.
template <class T>
std::string tensor_of(const std::string& dtype, const std::vector<T>& values, const std::string& shape) {
  const size_t bytes = values.size() * sizeof(T);
  std::string file = safetensors_bytes(R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape +
                                           R"(,"data_offsets":[0,)" + std::to_string(bytes) + "]}}",
                                       0);
  return file + std::string(reinterpret_cast<const char*>(values.data()), bytes);
}

struct Folder : TempFolder {
  Folder() { write("config.json", "{\"model_type\":\"opt\"}"); }
  Checkpoint open(const CheckpointOptions& options = {}) const { return Checkpoint::open(path(), options); }
  ::testing::AssertionResult fails_with(const std::string& part,
                                        const CheckpointOptions& options = {}) const {
    return throws_with(part, [&] { open(options); });
  }
};

TEST(Checkpoint, OpensASingleFile) {
  const Folder folder;
  folder.write("model.safetensors", one_tensor("a"));
  Checkpoint checkpoint = folder.open();
  EXPECT_EQ(checkpoint.folder(), folder.path());
  EXPECT_EQ(checkpoint.config()["model_type"], "opt");
  EXPECT_EQ(checkpoint.files(), std::vector<fs::path>{folder / "model.safetensors"});
  ASSERT_EQ(checkpoint.tensors().size(), 1u);
  EXPECT_EQ(checkpoint.find("a"), &checkpoint.tensors()[0]);
  EXPECT_EQ(checkpoint.find("b"), nullptr);
  EXPECT_EQ(checkpoint.find(""), nullptr);
  EXPECT_TRUE(checkpoint.warnings().empty());
  EXPECT_TRUE(throws_with("tensor \"b\" is missing", [&] { checkpoint.require("b"); }));
  const TensorView view = checkpoint.view(checkpoint.require("a"));
  EXPECT_EQ(view.dtype, DType::u8);
  EXPECT_EQ(view.as<uint8_t>()[1], 1);
  Checkpoint moved = std::move(checkpoint);
  EXPECT_NE(moved.find("a"), nullptr);
  EXPECT_NO_THROW(moved.check_intact());
}

TEST(Checkpoint, OpensALoneFileOfAnotherName) {
  const Folder folder;
  folder.write("gptq_model-4bit.safetensors", one_tensor("a"));
  EXPECT_EQ(folder.open().tensors().size(), 1u);
  folder.write("second.safetensors", one_tensor("b"));
  EXPECT_TRUE(folder.fails_with("2 safetensors files, expected model.safetensors.index.json"));
}

TEST(Checkpoint, OpensShards) {
  const Folder folder;
  folder.write("x.safetensors", one_tensor("a"));
  folder.write("y.safetensors", one_tensor("b"));
  folder.write("model.safetensors.index.json", index_json(R"({"b":"y.safetensors","a":"x.safetensors"})"));
  const Checkpoint checkpoint = folder.open();
  EXPECT_EQ(checkpoint.files().size(), 2u);
  EXPECT_EQ(checkpoint.require("b").file, 1);
  EXPECT_TRUE(checkpoint.warnings().empty());
}

TEST(Checkpoint, ShardMistakes) {
  struct Row {
    const char* index;
    const char* part;
  };
  const Row rows[] = {
      {R"({"a":"x.safetensors","b":"gone.safetensors"})", "names \"gone.safetensors\", which is missing"},
      {R"({"a":"x.safetensors","c":"y.safetensors"})", "tensor \"c\" is in y.safetensors, but it is nowhere"},
      {R"({"a":"y.safetensors","b":"x.safetensors"})",
       "tensor \"a\" is in y.safetensors, but it is in x.safetensors"},
      {R"({"a":"x.safetensors","b":"z.safetensors"})", "tensor \"a\" is also in"},
      {R"({"a":"../x.safetensors"})", "expected a plain file name, got \"../x.safetensors\""},
      {R"({"a":"pytorch_model.bin"})", "expected a .safetensors file"},
  };
  for (const Row& row : rows) {
    const Folder folder;
    folder.write("x.safetensors", one_tensor("a"));
    folder.write("y.safetensors", one_tensor("b"));
    folder.write("z.safetensors", one_tensor("a"));
    folder.write("model.safetensors.index.json", index_json(row.index));
    EXPECT_TRUE(folder.fails_with(row.part)) << row.index;
  }
}

TEST(Checkpoint, HarmlessShardMistakesWarn) {
  const Folder folder;
  folder.write("x.safetensors", safetensors_bytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                                  R"("b":{"dtype":"F128","shape":[2],"data_offsets":[2,4]}})",
                                                  4));
  folder.write("model.safetensors.index.json", index_json(R"({"a":"x.safetensors"})", R"({"total_size":5})"));
  const Checkpoint checkpoint = folder.open();
  ASSERT_EQ(checkpoint.warnings().size(), 3u);
  EXPECT_NE(checkpoint.warnings()[0].find("\"b\" has the unknown dtype \"F128\""), std::string::npos);
  EXPECT_NE(checkpoint.warnings()[1].find("lists 1 tensors, the files hold 2"), std::string::npos);
  EXPECT_NE(checkpoint.warnings()[2].find("total_size is 5, the tensors have 4"), std::string::npos);
  EXPECT_TRUE(throws_with("got \"F128\"", [&] { checkpoint.view(checkpoint.require("b")); }));
}

TEST(Checkpoint, FolderMistakes) {
  const TempFolder empty;
  EXPECT_TRUE(throws_with("no such folder", [&] { Checkpoint::open(empty / "gone"); }));
  EXPECT_TRUE(throws_with("found neither", [&] { Checkpoint::open(empty.path()); }));
  empty.write("model.safetensors", one_tensor("a"));
  EXPECT_TRUE(throws_with("config.json: cannot open", [&] { Checkpoint::open(empty.path()); }));
  EXPECT_TRUE(throws_with("expected a folder", [&] { Checkpoint::open(empty / "model.safetensors"); }));
  for (const auto& [config, part] : {std::pair("[]", "expected an object"),
                                     {"{", "not valid JSON"},
                                     {"{\"a\":1,\"a\":2}", "duplicate key"}}) {
    empty.write("config.json", config);
    EXPECT_TRUE(throws_with(part, [&] { Checkpoint::open(empty.path()); })) << config;
  }
}

TEST(Checkpoint, PickleIsExplainedAndNeverRead) {
  const Folder folder;
  ASSERT_EQ(::mkfifo((folder / "pytorch_model.bin").c_str(), 0600), 0);  // opening it would block
  EXPECT_TRUE(folder.fails_with("tools/convert_checkpoint.py"));
  EXPECT_TRUE(
      throws_with("tools/convert_checkpoint.py", [&] { Checkpoint::open(folder / "pytorch_model.bin"); }));
}

TEST(Checkpoint, OddFilesAreRefusedWithoutBlocking) {
  for (const char* name : {"model.safetensors", "config.json", "model.safetensors.index.json"}) {
    for (const char* kind : {"folder", "fifo", "device", "unreadable"}) {
      const Folder folder;
      if (std::string(name) != "model.safetensors.index.json")
        folder.write("model.safetensors", one_tensor("a"));
      fs::remove(folder / name);
      std::string part = "not a regular file";
      if (kind == std::string("folder")) {
        fs::create_directory(folder / name);
      } else if (kind == std::string("fifo")) {
        ASSERT_EQ(::mkfifo((folder / name).c_str(), 0600), 0);
      } else if (kind == std::string("device")) {
        fs::create_symlink("/dev/zero", folder / name);
      } else {
        if (::geteuid() == 0) continue;  // root reads everything
        folder.write(name, "{}");
        fs::permissions(folder / name, fs::perms::none);
        part = "Permission denied";
      }
      EXPECT_TRUE(folder.fails_with(part)) << name << " " << kind;
    }
  }
  const Folder folder;
  folder.write("model.safetensors", "");
  EXPECT_TRUE(folder.fails_with("0 bytes, expected at least 8"));
}

TEST(Checkpoint, SymbolicLinksOnlyWithoutStrictPaths) {
  const Folder folder;
  const TempFolder blobs;
  fs::create_symlink(blobs.write("1234", one_tensor("a")), folder / "model.safetensors");
  EXPECT_NO_THROW(folder.open());
  EXPECT_TRUE(folder.fails_with("model.safetensors: is a symbolic link", {.strict_paths = true}));
  fs::remove(folder / "model.safetensors");
  folder.write("model.safetensors", one_tensor("a"));
  EXPECT_NO_THROW(folder.open({.strict_paths = true}));
  fs::remove(folder / "config.json");
  fs::create_symlink(blobs.write("5678", "{}"), folder / "config.json");
  EXPECT_TRUE(folder.fails_with("config.json: is a symbolic link", {.strict_paths = true}));
  fs::remove(folder / "model.safetensors");
  fs::create_symlink(blobs / "gone", folder / "model.safetensors");
  EXPECT_TRUE(folder.fails_with("No such file"));
}

TEST(Checkpoint, FloatsOfEveryType) {
  const auto read = [](const std::string& file) {
    const Folder folder;
    folder.write("model.safetensors", file);
    const Checkpoint checkpoint = folder.open();
    return checkpoint.floats(checkpoint.require("t"));
  };
  const std::vector<float> values = {1.5f, -2, 0.25f};
  EXPECT_EQ(read(tensor_of<float>("F32", values, "[3]")), values);
  EXPECT_EQ(read(tensor_of<uint16_t>("F16", {0x3E00, 0xC000, 0x3400}, "[3,1]")), values);
  EXPECT_EQ(read(tensor_of<uint16_t>("BF16", {0x3FC0, 0xC000, 0x3E80}, "[1,3]")), values);
  EXPECT_TRUE(read(tensor_of<float>("F32", {}, "[0,3]")).empty());
  EXPECT_EQ(read(tensor_of<float>("F32", {7}, "[]")), std::vector<float>{7});
  for (const auto& [dtype, size] : {std::pair("F64", 8), {"I64", 8}, {"U8", 1}, {"I32", 4}, {"BOOL", 1}}) {
    const std::string file = tensor_of<uint8_t>(dtype, std::vector<uint8_t>(size_t(size)), "[1]");
    EXPECT_TRUE(throws_with(std::string("tensor \"t\": expected dtype F32, F16 or BF16, got \"") + dtype,
                            [&] { read(file); }));
  }
}

TEST(Checkpoint, WeightsAreCheckedByTypeAndShape) {
  const Folder folder;
  folder.write("model.safetensors", tensor_of<float>("F32", {1, 2, 3, 4, 5, 6}, "[2,3]"));
  const Checkpoint checkpoint = folder.open();
  const TensorView view = checkpoint.weight("t", {2, 3});
  EXPECT_EQ(view.shape, (Shape{2, 3}));
  float last = 0;
  std::memcpy(&last, static_cast<const char*>(view.data) + 20, 4);
  EXPECT_EQ(last, 6);
  EXPECT_TRUE(throws_with("tensor \"t\": expected shape [3, 2], got [2,3]", [&] {
    checkpoint.weight("t", {3, 2});
  }));
  EXPECT_TRUE(throws_with("expected shape [6]", [&] { checkpoint.weight("t", {6}); }));
  EXPECT_TRUE(throws_with("expected shape [2, 3, 1]", [&] { checkpoint.weight("t", {2, 3, 1}); }));
  EXPECT_TRUE(throws_with("tensor \"u\" is missing", [&] { checkpoint.weight("u", {2, 3}); }));

  folder.write("model.safetensors", tensor_of<int32_t>("I32", {1, 2}, "[1,1,1,1,2]"));
  const Checkpoint other = folder.open();
  EXPECT_TRUE(throws_with("expected at most 4 dimensions", [&] { other.view(other.require("t")); }));
  EXPECT_TRUE(throws_with("expected dtype F32, F16 or BF16", [&] { other.weight("t", {2}); }));
}

TEST(Checkpoint, NonFiniteValuesLoadAndAreCounted) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const auto scan = [](const std::string& file) {
    const Folder folder;
    folder.write("model.safetensors", file);
    const Checkpoint checkpoint = folder.open();
    const NonFinite found = checkpoint.non_finite(checkpoint.require("t"));
    return std::pair(found.count, found.first);
  };
  using Found = std::pair<int64_t, int64_t>;
  EXPECT_EQ(scan(tensor_of<float>("F32", {1, std::numeric_limits<float>::max(), 0}, "[3]")), Found(0, -1));
  EXPECT_EQ(scan(tensor_of<float>("F32", {1, nan, 0, -inf}, "[4]")), Found(2, 1));
  EXPECT_EQ(scan(tensor_of<double>("F64", {1, 1e308, double(inf)}, "[3]")), Found(1, 2));
  EXPECT_EQ(scan(tensor_of<uint16_t>("F16", {0x7C00, 0x7BFF, 0xFE00}, "[3]")), Found(2, 0));
  EXPECT_EQ(scan(tensor_of<uint16_t>("BF16", {0x7F7F, 0xFF80}, "[2]")), Found(1, 1));
  EXPECT_EQ(scan(tensor_of<uint32_t>("I32", {0x7F800000}, "[1]")), Found(0, -1));
}

/// A folder with one F32 tensor of `mebibytes` filled with ones, and its file.
struct LargeFolder : Folder {
  explicit LargeFolder(size_t mebibytes) {
    std::vector<float> values(mebibytes << 18, 1.0f);
    file = write("model.safetensors",
                 tensor_of<float>("F32", values, "[" + std::to_string(values.size()) + "]"));
  }
  fs::path file;
};

TEST(Checkpoint, AFileThatShrinksIsReportedInsteadOfCrashing) {
  const LargeFolder folder(4);
  const Checkpoint checkpoint = folder.open();
  const StoredTensor& tensor = checkpoint.require("t");
  fs::resize_file(folder.file, 1 << 20);
  const std::vector<float> values =
      checkpoint.floats(tensor);  // beyond the first MiB a SIGBUS without the handler
  EXPECT_EQ(values.front(), 1.0f);
  EXPECT_EQ(values.back(), 0.0f);
  EXPECT_TRUE(throws_with("shrank", [&] { checkpoint.check_intact(); }));
  // Growing back does not heal it: zeros were read.
  fs::resize_file(folder.file, tensor.offset + tensor.bytes);
  EXPECT_TRUE(throws_with("could not be read", [&] { checkpoint.check_intact(); }));
  EXPECT_NO_THROW(folder.open().check_intact());
}

TEST(Checkpoint, AFileThatShrinksInsideItsLastPageIsReported) {
  const Folder folder;
  const auto file = folder.write("model.safetensors", one_tensor("a"));
  const Checkpoint checkpoint = folder.open();
  fs::resize_file(file, fs::file_size(file) - 1);
  EXPECT_TRUE(throws_with("shrank", [&] { checkpoint.check_intact(); }));
}

TEST(CheckpointDeathTest, OtherBusErrorsStayFatal) {
  const TempFolder folder;
  const MappedFile installs_the_handler = MappedFile::open(folder.write("a", "x"));
  const auto file = folder.write("b", std::string(1 << 16, 'x'));
  const auto fault = [&] {
    const int descriptor = ::open(file.c_str(), O_RDONLY);
    void* const map = ::mmap(nullptr, 1 << 16, PROT_READ, MAP_PRIVATE, descriptor, 0);
    fs::resize_file(file, 0);
    std::_Exit(static_cast<volatile const char*>(map)[0]);
  };
  EXPECT_DEATH(fault(), "");
  EXPECT_DEATH(::raise(SIGBUS), "");
}

/// Resident bytes of mapped files.
size_t resident_file_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("RssFile:")) return std::stoul(line.substr(8)) * 1024;
  return 0;
}

TEST(Checkpoint, ReleaseDropsThePagesAndKeepsTheValues) {
  const LargeFolder folder(32);
  const Checkpoint checkpoint = folder.open();
  const StoredTensor& tensor = checkpoint.require("t");
  const size_t before = resident_file_bytes();
  EXPECT_EQ(checkpoint.non_finite(tensor).count, 0);
  EXPECT_GE(resident_file_bytes(), before + (30u << 20));
  checkpoint.release(tensor);
  EXPECT_LE(resident_file_bytes(), before + (4u << 20));
  EXPECT_EQ(checkpoint.floats(tensor).back(), 1.0f);
  EXPECT_NO_THROW(checkpoint.check_intact());
}

TEST(Checkpoint, OpensTheBundledModel) {
  const Checkpoint checkpoint = Checkpoint::open(BALLAST_SOURCE_DIR "/models/demo");
  EXPECT_GT(checkpoint.tensors().size(), 20u);
  for (const StoredTensor& tensor : checkpoint.tensors()) EXPECT_EQ(checkpoint.non_finite(tensor).count, 0);
}

}  // namespace
}  // namespace ballast
