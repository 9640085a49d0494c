#include "quantize/journal.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
using Found = Journal::Found;

const RunFingerprint kRun = {{"--bits", "4"}, {"model.safetensors", "0123456789abcdef"}};
const std::string kWork = ".ballast-quantize";

class JournalTest : public testing::Test {
 protected:
  fs::path output() const { return folder_ / "out"; }
  std::string file(const std::string& name) const { return "out/" + kWork + "/" + name; }
  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(output() / kWork))
      names.insert(entry.path().filename().string());
    return names;
  }
  /// A run that finished three records, one of them empty.
  void begin() {
    Journal journal(output(), kRun, Found::refuse);
    journal.append("a", "first");
    journal.append("b", std::string(100000, 'b'));
    journal.append("c", "");
  }
  /// Which records a resumed run finds.
  std::string found() {
    const Journal journal(output(), kRun, Found::resume);
    std::string found;
    for (const char* name : {"a", "b", "c"})
      if (journal.contains(name)) found += name;
    damage_ = journal.damage();
    return found;
  }
  /// The same, after which that run finishes those that are missing.
  std::string resumed() {
    const std::string before = found();
    Journal journal(output(), kRun, Found::resume);
    for (const auto& [name, bytes] :
         {std::pair{"a", std::string("first")}, {"b", std::string(100000, 'b')}, {"c", std::string()}}) {
      if (!journal.contains(name)) journal.append(name, bytes);
      EXPECT_EQ(journal.find(name), bytes) << name;
    }
    return before;
  }
  /// The work folder as begin() left it, but with this journal.
  void restore(const std::string& journal) {
    fs::create_directories(output() / kWork);
    folder_.write(file("000001"), "first");
    folder_.write(file("000002"), std::string(100000, 'b'));
    folder_.write(file("000003"), "");
    folder_.write(file("journal"), journal);
  }

  TempFolder folder_{memory_folder()};
  std::string damage_;
};

TEST_F(JournalTest, AnUnfinishedRunIsResumedWithItsRecords) {
  begin();
  EXPECT_EQ(names(), (std::set<std::string>{"lock", "journal", "000001", "000002", "000003"}));
  Journal journal(output(), kRun, Found::resume);
  EXPECT_TRUE(journal.resumed());
  EXPECT_EQ(journal.damage(), "");
  EXPECT_EQ(journal.bytes(), 100005u);
  EXPECT_EQ(journal.find("a"), "first");
  EXPECT_EQ(journal.find("c"), "");
  EXPECT_EQ(journal.find("d"), std::nullopt);
  EXPECT_THROW(journal.append("a", "again"), ContractError);
}

TEST_F(JournalTest, FinishedRunsLeaveNothing) {
  begin();
  {
    Journal journal(output(), kRun, Found::resume);
    journal.finish();
    EXPECT_TRUE(fs::is_empty(output()));
    // From here on the folder is another run's.
    const Journal other(output(), kRun, Found::refuse);
  }
  begin();
  EXPECT_EQ(names().size(), 5u);
}

TEST_F(JournalTest, RunsThatFinishedNothingLeaveNothing) {
  { const Journal journal(output(), kRun, Found::refuse); }
  EXPECT_FALSE(fs::exists(output()));
  fs::create_directory(output());
  folder_.write("out/other", "x");
  { const Journal journal(output(), kRun, Found::resume); }
  EXPECT_EQ(std::distance(fs::directory_iterator(output()), {}), 1);
}

TEST_F(JournalTest, AnUnfinishedRunIsNeverOverwrittenSilently) {
  begin();
  EXPECT_TRUE(throws_with("holds an unfinished run; continue it with --resume, or start over with --force",
                          [&] { Journal(output(), kRun, Found::refuse); }));
  EXPECT_EQ(names().size(), 5u);
  const Journal journal(output(), kRun, Found::discard);
  EXPECT_FALSE(journal.resumed());
  EXPECT_EQ(names(), (std::set<std::string>{"lock", "journal"}));
}

TEST_F(JournalTest, ADifferentRunIsRefusedAndKept) {
  begin();
  EXPECT_TRUE(throws_with("--bits 4 -> 3, model.safetensors changed; repeat what it began with", [&] {
    Journal(output(), {{"--bits", "3"}, {"model.safetensors", "0"}}, Found::resume);
  }));
  EXPECT_EQ(resumed(), "abc");
}

TEST_F(JournalTest, TwoProcessesExcludeEachOther) {
  int ready[2], done[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(done), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    {
      const Journal journal(output(), kRun, Found::refuse);
      (void)!::write(ready[1], "x", 1);
      char byte;
      (void)!::read(done[0], &byte, 1);
      ::kill(::getpid(), SIGKILL);
    }
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  for (const Found found : {Found::refuse, Found::resume, Found::discard})
    EXPECT_TRUE(throws_with(str(output().string(), ": process ", child, " is at work there"),
                            [&] { Journal(output(), kRun, found); }));
  EXPECT_EQ(::write(done[1], "x", 1), 1);
  ::waitpid(child, nullptr, 0);
  // The killed process's lock is gone with it, although its file still names it.
  EXPECT_EQ(folder_.read(file("lock")), std::to_string(child));
  EXPECT_NO_THROW(Journal(output(), kRun, Found::refuse));
  for (const int end : {ready[0], ready[1], done[0], done[1]}) ::close(end);
}

// Whatever byte the journal ends at: the records before are kept, the others done again.
TEST_F(JournalTest, ATornJournalLosesItsTailOnly) {
  begin();
  const std::string journal = folder_.read(file("journal"));
  std::vector<size_t> ends;
  for (size_t at = journal.find('\n'); at != journal.npos; at = journal.find('\n', at + 1))
    ends.push_back(at + 1);
  ASSERT_EQ(ends.size(), 4u);
  for (size_t size = 0; size <= journal.size(); ++size) {
    restore(journal.substr(0, size));
    if (size < ends[0]) {
      EXPECT_TRUE(throws_with("not a journal that this version can read; start over with --force",
                              [&] { Journal(output(), kRun, Found::resume); }));
      continue;
    }
    const std::string expected = size < ends[1] ? "" : size < ends[2] ? "a" : size < ends[3] ? "ab" : "abc";
    EXPECT_EQ(found(), expected) << size;
    if (size <= ends[1]) continue;
    EXPECT_EQ(damage_.empty(), size == ends[2] || size == ends[3]) << size;
    if (size % 16 != 0) continue;
    EXPECT_EQ(resumed(), expected);
    EXPECT_EQ(folder_.read(file("journal")), journal);
  }
}

TEST_F(JournalTest, AnyDamagedByteOfTheJournalIsFound) {
  begin();
  const std::string journal = folder_.read(file("journal"));
  const size_t first_end = journal.find('\n');
  for (size_t at = 0; at < journal.size(); ++at) {
    std::string damaged = journal;
    damaged[at] = char(damaged[at] ^ 4);
    restore(damaged);
    if (at <= first_end)
      EXPECT_THROW(Journal(output(), kRun, Found::resume), Error) << at;
    else
      EXPECT_LT(found().size(), 3u) << at;
  }
}

TEST_F(JournalTest, DamagedRecordsAreDoneAgain) {
  begin();
  const auto expect = [&](const std::string& found, const char* what) {
    EXPECT_EQ(resumed(), found) << what;
    EXPECT_NE(damage_.find("is damaged"), std::string::npos) << what;
    EXPECT_EQ(resumed(), "abc") << what;
  };
  std::string bytes = folder_.read(file("000002"));
  bytes[50000] = 'x';
  folder_.write(file("000002"), bytes);
  expect("a", "a changed byte");
  fs::resize_file(output() / kWork / "000002", 99999);
  expect("a", "a byte short");
  fs::remove(output() / kWork / "000002");
  expect("a", "missing");
  fs::remove(output() / kWork / "000001");
  fs::create_directory(output() / kWork / "000001");
  expect("", "a folder");
}

TEST_F(JournalTest, OtherFilesInTheWorkFolderAreRemoved) {
  begin();
  for (const char* name : {"new", "000004", "000099"}) folder_.write(file(name), "left by a killed run");
  EXPECT_EQ(resumed(), "abc");
  EXPECT_EQ(names().size(), 5u);
}

TEST_F(JournalTest, AFailedAppendKeepsWhatWasThere) {
  begin();
  Journal journal(output(), kRun, Found::resume);
  ::signal(SIGXFSZ, SIG_IGN);
  const uint64_t size = fs::file_size(output() / kWork / "journal");
  // The record itself does not fit; then its line only in part.
  for (const uint64_t limit : {uint64_t(50), size + 20}) {
    rlimit old{};
    ::getrlimit(RLIMIT_FSIZE, &old);
    const rlimit small = {limit, old.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &small);
    EXPECT_THROW(journal.append("d", std::string(100, 'd')), RuntimeFailure) << limit;
    ::setrlimit(RLIMIT_FSIZE, &old);
    EXPECT_FALSE(journal.contains("d"));
    EXPECT_FALSE(fs::exists(output() / kWork / "new"));
  }
  journal.append("d", "at last");
  EXPECT_EQ(journal.find("d"), "at last");
  EXPECT_EQ(journal.find("c"), "");
}

TEST_F(JournalTest, UnwritableFoldersAreErrors) {
  folder_.write("file", "x");
  EXPECT_TRUE(
      throws_with("cannot create the folder", [&] { Journal(folder_ / "file", kRun, Found::refuse); }));
  EXPECT_THROW(Journal("/proc/ballast", kRun, Found::refuse), Error);
  fs::create_directory(output());
  fs::create_directory_symlink(folder_.path(), output() / kWork);
  EXPECT_TRUE(throws_with("is a symbolic link", [&] { Journal(output(), kRun, Found::refuse); }));
}

}  // namespace
}  // namespace ballast
