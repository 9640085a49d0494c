// What a quantization run has finished, kept on the disk so that a killed run can be continued.
//
// A work folder inside the output folder holds
//   lock     locked (flock) for as long as its process lives, by whatever way that ends; holds the process id
//   journal  one line per record: 16 hexadecimal digits, the XXH64 hash of what follows, a blank, one JSON object;
//            the first holds the fingerprint, every other one name, size and hash of a record
//   000001 … the records themselves, in the journal's order
//
// A record is written to a temporary name, fsynced, renamed, the folder fsynced; then its line is appended and
// fsynced. So the journal never names what is not on the disk. On opening, every record's hash is verified; from
// the first bad line or record on (a torn tail, a damaged disk) everything is dropped, to be done again.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "quantize/fingerprint.h"

namespace ballast {

class Journal {
 public:
  /// What to do about the unfinished run that may be there.
  enum class Found {
    refuse,   ///< Error that says both ways out; a run that finished nothing does not count
    resume,   ///< go on with it; Error that names the differences unless its fingerprint is `fingerprint`
    discard,  ///< start over
  };

  /// Creates the folders. Error if the output folder is not writable, or another process, named by its id, is
  /// at work there.
  Journal(const std::filesystem::path& output, const RunFingerprint& fingerprint, Found found);
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  /// Leaves the work folder for the next run, or removes it if there is nothing in it to resume.
  ~Journal();

  /// The record of that name. Error if it cannot be read any more.
  std::optional<std::string> find(const std::string& name) const;
  bool contains(const std::string& name) const;
  /// Records whose name begins with `prefix`.
  int64_t count(std::string_view prefix) const;
  /// On return the record is on the disk to stay. After a failure (RuntimeFailure) all earlier ones still are,
  /// and the journal can be appended to again. A name must be new.
  void append(const std::string& name, std::string_view bytes);
  /// Removes the work folder: the run's result is complete.
  void finish();

  /// True if this run goes on with an earlier one.
  bool resumed() const;
  /// What was dropped on opening, one line; empty when all was in order.
  const std::string& damage() const;
  /// Of all records.
  uint64_t bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ballast
