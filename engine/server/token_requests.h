// The bodies of /tokenize and /detokenize to answers, in vLLM's words or in llama-server's.
#pragma once

#include "engine/server/completion_request.h"

namespace ballast::server {

/// A request's body as a JSON object, within the limits of requests. ApiError with code `invalid_json` when it is none.
nlohmann::json parse_request_object(std::string_view body);

/// The answer to {"prompt" | "content": TEXT, "add_special_tokens" | "add_special": BOOL, "return_token_strs": BOOL,
/// "with_pieces": BOOL}. ApiError or Error.
nlohmann::json tokenize_request(std::string_view body, const ApiLimits& limits);
/// The answer to {"tokens": [ID, …]}. ApiError or Error.
nlohmann::json detokenize_request(std::string_view body, const ApiLimits& limits);

}  // namespace ballast::server
