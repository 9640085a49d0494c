// The table of routes. Internal to the service.
#pragma once

#include "engine/server/service.h"

namespace ballast::server {

struct Service::Route {
  enum class Of : uint8_t { any, text, images };

  std::string_view method, path;  ///< path ending in '*': any rest
  void (Service::*handler)(HttpRequest&, const std::shared_ptr<Reply>&);
  Of of = Of::any;           ///< models that have it
  bool open_to_all = false;  ///< needs no key
  bool any_state = false;    ///< answers while loading and draining, too
};

}  // namespace ballast::server
