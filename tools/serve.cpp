// Serves a model over HTTP.
#include <spdlog/spdlog.h>

#include <optional>

#include "engine/server/service.h"
#include "tools/classes.h"
#include "tools/console.h"
#include "tools/flags.h"
#include "tools/loaded_model.h"
#include "tools/model_summary.h"
#include "tools/subcommand.h"
#include "tools/version.h"

namespace ballast {
namespace {

struct ServeOptions {
  std::string model, name, labels, chat_template, prefix_cache = "shared", activations = "f32";
  int64_t slots = 16, context = 0, cache_positions = 0, batch_tokens = 512, queue = -1;
  CacheType cache_type = CacheType::f32;
  double pass_seconds = 0.25;
  int max_logprobs = 5;
  int64_t max_body_mib = 4, max_image_mib = 16;
  bool strict_model = false, no_metrics = false, no_page = false, no_slots = false;
  server::ServiceOptions service;
};

server::PrefixSharing parse_sharing(const std::string& name) {
  if (name == "shared") return server::PrefixSharing::everyone;
  if (name == "per-key") return server::PrefixSharing::same_key;
  return server::PrefixSharing::none;
}

server::ServiceOptions service_options(const ServeOptions& options) {
  server::ServiceOptions service = options.service;
  service.max_queue = options.queue >= 0 ? options.queue : 4 * options.slots + 64;
  service.sharing = parse_sharing(options.prefix_cache);
  service.metrics = !options.no_metrics;
  service.page = !options.no_page;
  service.slots = !options.no_slots;
  service.version = build_name();
  service.http.read.body = uint64_t(options.max_body_mib) << 20;
  return service;
}

std::string name_of_folder(const std::string& folder) {
  std::filesystem::path path = std::filesystem::absolute(folder).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

void warn_when_public(const server::ServiceOptions& service) {
  const std::string& host = service.http.host;
  if (service.http.unix_socket.empty() && service.api_key_file.empty() && host != "localhost" &&
      host != "::1" && !host.starts_with("127."))
    spdlog::warn("anybody who reaches {} may use this server: --api-key-file restricts it", host);
}

/// Cache positions: what was asked for, or room for every slot to hold a quarter of the context, at least one whole.
int64_t cache_positions(const ServeOptions& options, int64_t context) {
  if (options.cache_positions > 0) return std::max(options.cache_positions, context);
  return std::max(context, options.slots * context / 4);
}

/// False when requests had to be cut off.
bool serve_text(const ServeOptions& options, const LoadedModel& loaded, Backend& backend,
                server::Service& service, server::ServedModel served) {
  if (!options.labels.empty()) throw Error("--labels is for image classifiers");
  std::optional<server::ChatTemplate> chat;
  if (!options.chat_template.empty()) chat = server::ChatTemplate::open(options.chat_template);
  const int64_t positions = loaded.model->facts().max_positions;
  if (options.context > positions)
    throw Error(
        str("--ctx is ", options.context, ", expected at most the model's ", positions, " positions"));
  const int64_t context = options.context > 0 ? options.context : positions;
  Engine engine(backend, *loaded.model,
                {.limits = {.max_sequences = options.slots, .max_batch_tokens = options.batch_tokens},
                 .context = context,
                 .cache_positions = cache_positions(options, context),
                 .cache_type = options.cache_type,
                 .usable_vocab = loaded.usable_vocab(),
                 .pass_seconds = options.pass_seconds});
  served.facts["context"] = context;
  served.facts["kv_cache"] = {{"dtype", name_of(options.cache_type)},
                              {"bytes", engine.cache().bytes()},
                              {"positions", engine.cache().pages() * kPagePositions}};
  served.slots = options.slots;
  served.engine = &engine;
  served.tokenizer = loaded.tokenizer.get();
  served.chat = chat ? &*chat : nullptr;
  served.usable_vocab = loaded.usable_vocab();
  served.max_logprobs = options.max_logprobs;
  spdlog::info("{} ready on {} in {}: {} slots, context {}, cache {} ({})", loaded.model->facts().architecture,
               service.address(), human_seconds(loaded.seconds), options.slots, context,
               human_bytes(double(engine.cache().bytes())), name_of(options.cache_type));
  return service.run(served);
}

/// As above.
bool serve_images(const ServeOptions& options, const LoadedModel& loaded, Backend& backend,
                  server::Service& service, server::ServedModel served) {
  if (!options.chat_template.empty()) throw Error("--chat-template is for models of text");
  ImageClassifier classifier(*loaded.checkpoint, backend, *loaded.model);
  served.slots = ImageClassifier::kBatch;
  served.images = &classifier;
  served.class_names = class_names(*loaded.checkpoint, classifier.classes(), options.labels);
  served.max_image_bytes = uint64_t(options.max_image_mib) << 20;
  const nn::ImageFacts& image = classifier.reader().facts();
  spdlog::info("{} ready on {} in {}: images of {} x {}, {} classes", loaded.model->facts().architecture,
               service.address(), human_seconds(loaded.seconds), image.height, image.width,
               classifier.classes());
  return service.run(served);
}

void serve(const ServeOptions& options, const GlobalOptions& global) {
  const server::ServiceOptions service_settings = service_options(options);
  server::Service service(service_settings);
  warn_when_public(service_settings);
  spdlog::info("listening on {}, loading {}", service.address(), options.model);

  const auto backend = find_backend(global.backend_with(options.activations));
  const LoadedModel loaded = load(options.model, *backend, WithTokenizer::unless_images);
  server::ServedModel served{.name = options.name.empty() ? name_of_folder(options.model) : options.name,
                             .facts = facts_json(*loaded.checkpoint, *loaded.model),
                             .strict_name = options.strict_model};
  served.facts["backend"] = backend->description();
  const bool clean = loaded.model->facts().image ? serve_images(options, loaded, *backend, service, served)
                                                 : serve_text(options, loaded, *backend, service, served);
  if (!clean) throw RuntimeFailure("requests were cut off when the time to end was over");
  spdlog::info("ended");
}

void add_address_flags(CLI::App& app, server::ServiceOptions& service) {
  app.add_option("--host", service.http.host, "Address to listen on")
      ->type_name("HOST")
      ->capture_default_str();
  app.add_option("--port", service.http.port, "0: any that is free")
      ->type_name("N")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--unix-socket", service.http.unix_socket, "Listen on this path instead")->type_name("PATH");
  app.add_option("--api-key-file", service.api_key_file,
                 "Keys that clients must send, one a line; read again on SIGHUP")
      ->type_name("FILE");
  app.add_option("--cors-origin", service.cors_origins,
                 "Origin whose pages may use the server, * for all; may be repeated")
      ->type_name("ORIGIN")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void add_engine_flags(CLI::App& app, ServeOptions& options) {
  const auto count = [&](const char* name, int64_t& value, int64_t low, const char* description) {
    app.add_option(name, value, description)
        ->type_name("N")
        ->check(CLI::Range(low, int64_t(1) << 40))
        ->capture_default_str();
  };
  count("--slots", options.slots, 1, "Sequences that run together");
  count("--ctx", options.context, 0, "Positions for prompt and answer; 0: the model's");
  count("--cache-positions", options.cache_positions, 0,
        "Positions that the cache holds for all sequences; 0: a quarter of the context for every slot");
  count("--batch-tokens", options.batch_tokens, 1, "Rows of one pass");
  app.add_option(
         "--pass-seconds", options.pass_seconds,
         "What a pass may take about while sequences decode, so that a long prompt does not hold them up")
      ->type_name("X")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option(
         "--prefix-cache", options.prefix_cache,
         "Who shares computed prompts, which shows in the time to the first token: shared, per-key or off")
      ->type_name("WHO")
      ->check(CLI::IsMember({"shared", "per-key", "off"}))
      ->capture_default_str();
  add_activations_flag(app, options.activations);
  add_cache_type_flag(app, options.cache_type);
}

void add_limit_flags(CLI::App& app, ServeOptions& options) {
  server::ServiceOptions& service = options.service;
  const auto seconds = [&](const char* name, double& value, const char* description) {
    app.add_option(name, value, description)
        ->type_name("SECONDS")
        ->check(CLI::Range(0.0, 1e6))
        ->capture_default_str();
  };
  app.add_option("--queue", options.queue,
                 "Sequences that may wait before requests are answered 429; -1: 4 for every slot and 64")
      ->type_name("N")
      ->check(CLI::Range(int64_t(-1), int64_t(1) << 30))
      ->capture_default_str();
  app.add_option("--max-logprobs", options.max_logprobs, "Largest logprobs of a request")
      ->type_name("N")
      ->check(CLI::Range(0, kMaxLogprobs))
      ->capture_default_str();
  app.add_option("--max-body", options.max_body_mib, "Largest body of a request in MiB")
      ->type_name("N")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--max-image", options.max_image_mib, "Largest image of a request in MiB, as sent")
      ->type_name("N")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--max-connections", service.http.max_connections, "Open connections")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-per-address", service.http.max_per_address,
                 "Open connections of one address, this machine's own excepted")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  seconds("--request-timeout", service.request_seconds,
          "A request ends with what it has after that long; 0: never");
  seconds("--read-timeout", service.http.header_seconds,
          "For the headers of a request, and as long again for a body");
  seconds("--idle-timeout", service.http.idle_seconds, "Between two requests of a connection");
  seconds("--stall-timeout", service.http.stall_seconds, "That a client may take nothing of its answer");
  seconds("--keep-alive", service.http.keep_alive_seconds, "Without a token, until a stream gets a comment");
  seconds("--drain", service.drain_seconds, "For running requests to finish after SIGTERM");
}

}  // namespace

Subcommand add_serve(CLI::App& root, const GlobalOptions& global) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* app = root.add_subcommand("serve", "Serve a model over HTTP, as the OpenAI API and others do");
  app->add_option("-m,--model", options->model, "Folder of the model")->required()->type_name("DIR");
  app->add_option("--name", options->name, "Name that clients see; the folder's without it")
      ->type_name("NAME");
  app->add_flag("--strict-model", options->strict_model, "Refuse requests that name another model");
  app->add_option("--labels", options->labels,
                  "File with the name of one class a line, for image classifiers [those of the model]")
      ->type_name("FILE");
  app->add_option(
         "--chat-template", options->chat_template,
         "JSON file with a text for every role, {content} in it, for /v1/chat/completions (see README)")
      ->type_name("FILE");
  add_address_flags(*app, options->service);
  add_engine_flags(*app, *options);
  add_limit_flags(*app, *options);
  app->add_flag("--no-metrics", options->no_metrics, "Answer 501 on /metrics");
  app->add_flag("--no-page", options->no_page, "Answer 501 on /");
  app->add_flag("--no-slots", options->no_slots, "Answer 501 on /slots");
  return {app, [options, &global] {
            options->service.http.body_seconds = options->service.http.header_seconds;
            serve(*options, global);
          }};
}

}  // namespace ballast
