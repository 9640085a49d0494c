// Logits of a language model through the runner.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "engine/runtime/runner.h"

namespace ballast {

/// Logits of all positions of `ids`, fed in chunks of `chunk` tokens.
inline std::vector<float> logits_of(Backend& backend, nn::Model& model, const std::vector<int32_t>& ids,
                                    size_t chunk) {
  KvCache cache(backend, model.facts(), model.facts().layers, int64_t(ids.size()));
  Runner runner(backend, model, cache);
  PageTable pages;
  EXPECT_TRUE(cache.reserve(pages, int64_t(ids.size())));
  std::vector<float> all;
  for (size_t start = 0; start < ids.size(); start += chunk) {
    const size_t count = std::min(chunk, ids.size() - start);
    Batch batch;
    batch.add(std::span(ids).subspan(start, count), int64_t(start), pages);
    const TensorView logits = runner.logits(runner.hidden(batch), batch.rows().positions);
    all.resize(all.size() + size_t(logits.shape.elements()));
    backend.copy_to_host(all.data() + all.size() - size_t(logits.shape.elements()), logits.data,
                         logits.bytes());
  }
  return all;
}

}  // namespace ballast
