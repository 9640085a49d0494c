// Scratch tensors of one forward pass: a stack of device memory that is rewound, never freed, between passes,
// so that a decode step allocates nothing once the largest step has been seen.
#pragma once

#include <vector>

#include "engine/core/tensor.h"

namespace ballast {

class Workspace {
 public:
  explicit Workspace(Backend& backend) : backend_(backend) {}

  /// Uninitialized memory, valid until the enclosing Scope ends.
  OutputView tensor(DType dtype, Shape shape);
  OutputView floats(Shape shape) { return tensor(DType::f32, shape); }

  /// Returns everything taken after its construction when it is destroyed. Scopes nest.
  class Scope {
   public:
    explicit Scope(Workspace& workspace)
        : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() {
      if (workspace_.holds_ > 0) return;
      workspace_.block_ = block_;
      workspace_.used_ = used_;
    }

   private:
    Workspace& workspace_;
    size_t block_;
    int64_t used_;
  };

  /// While one is alive, scopes that end return nothing: what they took lives on until the scope around it
  /// ends.
  class Hold {
   public:
    explicit Hold(Workspace& workspace) : workspace_(workspace) { ++workspace_.holds_; }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    ~Hold() { --workspace_.holds_; }

   private:
    Workspace& workspace_;
  };

  int64_t bytes() const;

 private:
  Backend& backend_;
  std::vector<Tensor> blocks_;  ///< u8
  size_t block_ = 0;            ///< the block being filled
  int64_t used_ = 0;            ///< bytes of it
  int holds_ = 0;
};

}  // namespace ballast
