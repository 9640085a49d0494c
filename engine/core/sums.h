// Sums that grow where they are computed.
#pragma once

#include <vector>

#include "engine/core/tensor.h"

namespace ballast {

/// Where ops add to sums of f32 or f64 that end up in a vector: in that vector, or on a device with memory of its own there
/// until they are settled, so that they do not travel with every addition.
template <class T>
class Sums {
 public:
  Sums() = default;
  Sums(Sums&&) noexcept = default;
  Sums& operator=(Sums&&) noexcept = default;
  /// Once they are settled, what there is to copy is in the vector.
  Sums(const Sums& other) { CHECK(!other.there_); }
  Sums& operator=(const Sums& other) { return *this = Sums(other); }

  /// The place, `values.size()` sums that are zero at first, on backend.device().
  T* place(Backend& backend, std::vector<T>& values) {
    if (backend.device() == Device::cpu) return values.data();
    if (!there_) {
      there_ = Tensor(backend, DType::u8, {int64_t(values.size() * sizeof(T))});
      backend.clear(there_.view().template as<void>(), there_.bytes());
    }
    return there_.view().template as<T>();
  }
  /// Brings them into `values`.
  void settle(Backend& backend, std::vector<T>& values) {
    if (!there_) return;
    backend.copy_to_host(values.data(), there_.view().data, there_.bytes());
    there_ = Tensor();
  }

 private:
  Tensor there_;
};

}  // namespace ballast
