#include "engine/io/checkpoint_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "tests/support/expect_error.h"
#include "tests/support/safetensors_bytes.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& file : fs::directory_iterator(folder)) names.push_back(file.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}
using Names = std::vector<std::string>;

/// A few tensors of all element sizes, added in an order that would leave some unaligned.
void add_tensors(CheckpointWriter& writer) {
  const uint8_t bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  const int64_t numbers[2] = {-1, int64_t(1) << 40};
  const float floats[3] = {0.5f, -1, 2};
  writer.add("bytes", "U8", {3}, bytes);
  writer.add("halves", "F16", {2, 1}, bytes);
  writer.add("numbers", "I64", {2}, numbers);
  writer.add("floats", "F32", {3}, floats);
  writer.add("empty", "F32", {0, 4}, nullptr);
  writer.add("scalar", "BF16", {}, bytes);
}

void write(const fs::path& folder, const CheckpointWriter::Options& options = {}) {
  CheckpointWriter writer(folder, options);
  add_tensors(writer);
  writer.add_file("notes.json", "{}\n");
  writer.finish({{"model_type", "opt"}});
}

TEST(CheckpointWriter, WhatIsWrittenIsRead) {
  const TempFolder folder;
  write(folder / "a/b");
  EXPECT_EQ(names_in(folder / "a/b"), (Names{"config.json", "model.safetensors", "notes.json"}));
  const Checkpoint checkpoint = Checkpoint::open(folder / "a/b");
  EXPECT_EQ(checkpoint.config(), (json{{"model_type", "opt"}}));
  ASSERT_EQ(checkpoint.tensors().size(), 6u);
  EXPECT_EQ(checkpoint.floats(checkpoint.require("floats")), (std::vector<float>{0.5f, -1, 2}));
  EXPECT_EQ(std::memcmp(checkpoint.bytes(checkpoint.require("bytes")), "\1\2\3", 3), 0);
  EXPECT_EQ(checkpoint.require("halves").shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(checkpoint.require("empty").shape, (std::vector<int64_t>{0, 4}));
  EXPECT_TRUE(checkpoint.require("scalar").shape.empty());
  for (const StoredTensor& tensor : checkpoint.tensors())
    EXPECT_EQ(tensor.offset % uint64_t(bits_of_dtype(tensor.dtype) / 8), 0u) << tensor.name;
  EXPECT_NE(folder.read("a/b/model.safetensors").find(R"("__metadata__":{"format":"pt"})"),
            std::string::npos);
}

TEST(CheckpointWriter, SameCallsSameBytes) {
  const TempFolder folder;
  write(folder / "a");
  write(folder / "b");
  for (const std::string& name : names_in(folder / "a"))
    EXPECT_EQ(folder.read("a/" + name), folder.read("b/" + name));
}

TEST(CheckpointWriter, ShardsAreCutAtTheLimit) {
  const TempFolder folder;
  write(folder / "a", {.max_shard_bytes = 16});
  EXPECT_EQ(names_in(folder / "a"),
            (Names{"config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                   "model-00003-of-00003.safetensors", "model.safetensors.index.json", "notes.json"}));
  const Checkpoint checkpoint = Checkpoint::open(folder / "a");
  EXPECT_TRUE(checkpoint.warnings().empty());
  EXPECT_EQ(checkpoint.tensors().size(), 6u);
  EXPECT_EQ(checkpoint.require("numbers").file, 1);
  const json index = json::parse(folder.read("a/model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 37);
  EXPECT_EQ(index["weight_map"]["bytes"], "model-00001-of-00003.safetensors");
}

TEST(CheckpointWriter, CopiesTensorsAndSideFiles) {
  const TempFolder folder;
  write(folder / "a");
  folder.write("a/vocab.json", "{\"x\":0}");
  const Checkpoint source = Checkpoint::open(folder / "a");
  CheckpointWriter writer(folder / "b", {});
  for (const StoredTensor& tensor : source.tensors()) writer.copy(source, tensor);
  EXPECT_EQ(writer.tensor_bytes(), 37u);
  writer.copy_file(folder / "a", "vocab.json");
  writer.copy_file(folder / "a", "merges.txt");  // not there
  writer.copy_file(folder / "a", "notes.json");
  writer.finish(source.config());
  EXPECT_EQ(folder.read("b/model.safetensors"), folder.read("a/model.safetensors"));
  EXPECT_EQ(folder.read("b/vocab.json"), "{\"x\":0}");
  EXPECT_EQ(names_in(folder / "b"), (Names{"config.json", "model.safetensors", "notes.json", "vocab.json"}));
}

TEST(CheckpointWriter, CopyFromAShrunkFileFails) {
  const TempFolder folder;
  {
    CheckpointWriter writer(folder / "a", {});
    writer.add("t", "U8", {1 << 20}, std::string(1 << 20, 'x').data());
    writer.finish(json::object());
  }
  const Checkpoint source = Checkpoint::open(folder / "a");
  fs::resize_file(folder / "a/model.safetensors", 4096);
  CheckpointWriter writer(folder / "b", {});
  EXPECT_TRUE(throws_with("shrank", [&] { writer.copy(source, source.tensors()[0]); }));
  EXPECT_THROW(writer.finish(json::object()), ContractError);
}

TEST(CheckpointWriter, NothingIsLeftWithoutFinish) {
  const TempFolder folder;
  {
    CheckpointWriter writer(folder / "a", {});
    add_tensors(writer);
    writer.add_file("notes.json", "{}");
    EXPECT_THROW(Checkpoint::open(folder / "a"), Error);
    EXPECT_EQ(names_in(folder / "a").size(), 1u);
  }
  EXPECT_FALSE(fs::exists(folder / "a"));
  { const CheckpointWriter writer(folder.path(), {}); }
  EXPECT_TRUE(fs::exists(folder.path()));
  EXPECT_TRUE(names_in(folder.path()).empty());
}

TEST(CheckpointWriter, AnExistingCheckpointIsKeptUnlessAskedOtherwise) {
  for (const char* name :
       {"config.json", "model.safetensors", "any.safetensors", "model.safetensors.index.json"}) {
    const TempFolder folder;
    folder.write(name, "x");
    EXPECT_TRUE(
        throws_with(std::string("already holds ") + name, [&] { CheckpointWriter(folder.path(), {}); }));
    EXPECT_EQ(names_in(folder.path()), Names{name});
  }
  const TempFolder folder;
  folder.write("README.md", "x");
  EXPECT_NO_THROW(CheckpointWriter(folder.path(), {}));
}

TEST(CheckpointWriter, OverwritingLeavesNothingOfTheOldCheckpoint) {
  const TempFolder folder;
  write(folder.path(), {.max_shard_bytes = 16});
  folder.write("README.md", "kept");
  {
    CheckpointWriter writer(folder.path(), {.overwrite = true});
    add_tensors(writer);
    EXPECT_EQ(Checkpoint::open(folder.path()).files().size(), 3u);  // the old one stays whole until finish
  }
  EXPECT_EQ(Checkpoint::open(folder.path()).files().size(), 3u);
  write(folder.path(), {.overwrite = true});
  EXPECT_EQ(names_in(folder.path()), (Names{"README.md", "config.json", "model.safetensors", "notes.json"}));
  write(folder.path(), {.overwrite = true, .max_shard_bytes = 16});
  EXPECT_EQ(Checkpoint::open(folder.path()).files().size(), 3u);
  EXPECT_FALSE(fs::exists(folder / "model.safetensors"));
}

TEST(CheckpointWriter, TwoWritersOfOneFolderExcludeEachOther) {
  const TempFolder folder;
  {
    const CheckpointWriter first(folder.path(), {});
    EXPECT_TRUE(throws_with("another process is writing", [&] { CheckpointWriter(folder.path(), {}); }));
  }
  EXPECT_NO_THROW(write(folder.path()));
}

TEST(CheckpointWriter, AKilledRunLeavesNoCheckpointAndIsCleanedUp) {
  const TempFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    CheckpointWriter writer(folder.path(), {});
    add_tensors(writer);
    writer.add_file("notes.json", "{}");
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(names_in(folder.path()).size(), 1u);
  EXPECT_THROW(Checkpoint::open(folder.path()), Error);
  write(folder.path());
  EXPECT_EQ(names_in(folder.path()), (Names{"config.json", "model.safetensors", "notes.json"}));
}

/// Lets files grow to `bytes` at most, so that writes beyond fail.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit = {bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &old_); }

 private:
  rlimit old_{};
};

TEST(CheckpointWriter, AFailedWriteSaysHowMuchSpaceIsNeeded) {
  const TempFolder folder;
  const std::string data(1 << 20, 'x');
  {
    CheckpointWriter writer(folder / "a", {});
    const FileSizeLimit limit(1 << 19);
    EXPECT_TRUE(throws_with<RuntimeFailure>("bytes so far and has",
                                            [&] { writer.add("t", "U8", {1 << 20}, data.data()); }));
  }
  EXPECT_FALSE(fs::exists(folder / "a"));
  {
    CheckpointWriter writer(folder / "a", {});
    writer.add("t", "U8", {1 << 20}, data.data());
    const FileSizeLimit limit(1 << 20);  // the header does not fit any more
    EXPECT_TRUE(throws_with<RuntimeFailure>("model.safetensors: cannot write",
                                            [&] { writer.finish(json::object()); }));
  }
  EXPECT_FALSE(fs::exists(folder / "a"));
}

TEST(CheckpointWriter, AFailedOverwriteKeepsTheOldCheckpoint) {
  const TempFolder folder;
  write(folder.path());
  const std::string before = folder.read("model.safetensors");
  {
    CheckpointWriter writer(folder.path(), {.overwrite = true});
    writer.add("t", "U8", {1 << 20}, std::string(1 << 20, 'x').data());
    const FileSizeLimit limit(1 << 20);
    EXPECT_THROW(writer.finish(json::object()), RuntimeFailure);
  }
  EXPECT_EQ(folder.read("model.safetensors"), before);
  EXPECT_NO_THROW(Checkpoint::open(folder.path()));
}

TEST(CheckpointWriter, SpaceIsCheckedBeforehand) {
  const TempFolder folder;
  const CheckpointWriter writer(folder.path(), {});
  EXPECT_NO_THROW(writer.require_space(0));
  EXPECT_TRUE(
      throws_with<RuntimeFailure>("bytes of free space", [&] { writer.require_space(uint64_t(1) << 60); }));
}

TEST(CheckpointWriter, UnwritableFoldersAreErrors) {
  const TempFolder folder;
  folder.write("file", "x");
  EXPECT_TRUE(throws_with("cannot create the folder", [&] { CheckpointWriter(folder / "file", {}); }));
  EXPECT_TRUE(throws_with("cannot create the folder", [&] { CheckpointWriter(folder / "file/below", {}); }));
  EXPECT_THROW(CheckpointWriter("/proc/ballast", {}), Error);
}

TEST(CheckpointWriter, WrongCallsAreContractErrors) {
  const TempFolder folder;
  CheckpointWriter writer(folder.path(), {});
  const float one = 1;
  writer.add("t", "F32", {1}, &one);
  EXPECT_THROW(writer.add("t", "F32", {1}, &one), ContractError);
  EXPECT_THROW(writer.add("__metadata__", "F32", {1}, &one), ContractError);
  EXPECT_THROW(writer.add("u", "F99", {1}, &one), ContractError);
  for (const char* name : {"config.json", "model.safetensors", "../x", "a/b", "..", "", "spool"})
    EXPECT_THROW(writer.add_file(name, ""), ContractError) << name;
  writer.add_file("x", "");
  EXPECT_THROW(writer.add_file("x", ""), ContractError);
  writer.finish(json::object());
  EXPECT_THROW(writer.finish(json::object()), ContractError);
  EXPECT_THROW(writer.add("v", "F32", {1}, &one), ContractError);
}

TEST(CheckpointWriter, SourceAndOutputMustDiffer) {
  const TempFolder folder;
  fs::create_directory(folder / "a");
  fs::create_directory(folder / "b");
  fs::create_directory_symlink(folder / "a", folder / "link");
  EXPECT_TRUE(
      throws_with("expected another folder", [&] { require_other_folder(folder / "a", folder / "a"); }));
  EXPECT_TRUE(
      throws_with("expected another folder", [&] { require_other_folder(folder / "a", folder / "link"); }));
  EXPECT_TRUE(throws_with("expected another folder",
                          [&] { require_other_folder(folder / "a", folder / "b/../a/"); }));
  EXPECT_NO_THROW(require_other_folder(folder / "a", folder / "b"));
  EXPECT_NO_THROW(require_other_folder(folder / "a", folder / "new"));
}

}  // namespace
}  // namespace ballast
