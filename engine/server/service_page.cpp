#include "engine/server/api_error.h"
#include "engine/server/page_parts.h"
#include "engine/server/service.h"

namespace ballast::server {
namespace {

// The page with `part` in the place of its mark.
std::string filled(std::string page, std::string_view mark, std::string_view part) {
  return page.replace(page.find(mark), mark.size(), part);
}

}  // namespace

void Service::page(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  if (!options_.page) throw ApiError(501, "the page is switched off");
  static const std::string kPage = filled(filled(std::string(kServerHtml), "/*STYLE*/", kServerCss),
                                          "/*SCRIPT*/", std::string(kServerJs) + std::string(kImagesJs));
  // While the model loads it is not known yet; the page finds out later.
  HttpResponse response{.body = filled(kPage, "/*KIND*/", model_.images ? "images" : "text"),
                        .content_type = "text/html; charset=utf-8"};
  response.headers = {{"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Content-Security-Policy", "frame-ancestors 'none'"}};
  answer(request, reply, std::move(response));
}

}  // namespace ballast::server
