// The part of device_check that is about quantizing.
#pragma once

#include "kernels/backend.h"
#include "tests/device/report.h"

namespace ballast::device {

/// Every op that quantizing takes, the way back and the choice of tokens, on `cuda` against `cpu`, from host memory. The bounds
/// are those of tests/kernels/cuda, where operands are small.
void check_quantizer(Backend& cpu, Backend& cuda, Report& report, bool small);

}  // namespace ballast::device
