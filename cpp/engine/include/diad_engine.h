/* C interface of the diad engine, used by the Node addon and the diad-engine executable.
 *
 * No C++ type and no exception crosses this interface. Functions that can fail return 0 on success and a
 * nonzero value on failure; diad_engine_last_error then describes the failure on the same thread. Strings are
 * UTF-8. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DIAD_ENGINE_ABI 6
#if defined(_WIN32) && defined(DIAD_ENGINE_BUILDING)
#define DIAD_EXPORT __declspec(dllexport)
#elif defined(_WIN32)
#define DIAD_EXPORT /* resolved by name at run time */
#else
#define DIAD_EXPORT __attribute__((visibility("default")))
#endif

typedef struct diad_engine diad_engine;

typedef struct {
  const char* code;    /* ERR_DIAD_..., see docs/reference/errors.md */
  const char* message; /* what was wrong, with which value, and what to do */
} diad_error;

typedef struct {
  const char* device;    /* "auto", "cpu", "cuda" or "cuda:N" */
  const char* precision; /* "float32", "bfloat16", "float16" or "int8" */
  int32_t threads;       /* intra-op threads; 0: LibTorch's default */
  int32_t max_batch;     /* images per batch, >= 1 */
  int32_t max_delay_ms;  /* how long an incomplete batch waits for more images, >= 0 */
  int32_t queue_limit;   /* queued images at which submit fails with ERR_DIAD_QUEUE_FULL, >= 1 */
  int32_t verify;        /* 0: skip the SHA-256 check of the files (sizes are always checked) */
  int32_t warmup;        /* 0: the first image pays for lazy initialization */
  /* Batch sizes that start as soon as that many images wait; ascending, 1 to max_batch. Can be NULL. */
  const int32_t* preferred_batches;
  int32_t preferred_count;
  /* Polled during loading; a nonzero result stops loading with ERR_DIAD_CLOSED. Can be NULL. */
  int32_t (*is_cancelled)(void* user);
  void* user;            /* passed to is_cancelled */
  const char* normality; /* path of a normality file from a calibration; NULL: published map and score */
} diad_load_options;

/* Statistics of normal images. Filled by requests that name the calibrator, then finished. */
typedef struct diad_calibrator diad_calibrator;

/* One intermediate result, row-major float32. */
typedef struct {
  const char* name;
  const int64_t* shape;
  int32_t dimensions;
  const float* values;
} diad_stage;

/* Milliseconds. queue: from submit to the start of the batch. compute: the whole batch. The other fields are
 * the parts of compute. */
typedef struct {
  double queue, compute, resize, encode, denoise, decode, extract, map;
} diad_timings;

/* Result of one image, freed with diad_engine_result_free. On failure only error is set. */
typedef struct {
  diad_error error; /* code NULL: success */
  double score;
  int32_t size;                  /* S: side length of map and reconstruction */
  const float* map;              /* [S, S], or NULL when not requested */
  const uint8_t* reconstruction; /* RGB8 [S, S, 3], or NULL when not requested */
  const diad_stage* stages;
  int32_t stage_count;
  int32_t batch_size; /* images in the batch */
  diad_timings timings;
  /* 1 with a normality file: score and map combine both kinds of evidence, and the next three fields are
   * set. */
  int32_t has_evidence;
  double evidence_reconstruction; /* scores of each kind of evidence on its own */
  double evidence_memory;
  const char* class_name; /* whose entry of the normality judged the image; "": that of all images */
} diad_result;

typedef void (*diad_done)(void* user, diad_result* result);
typedef void (*diad_step)(void* user, int32_t step, int32_t total);

typedef struct {
  const uint8_t* pixels; /* RGB, RGBA or gray, 8 bits, tightly packed rows; copied by submit */
  uint32_t width;        /* pixels */
  uint32_t height;       /* pixels */
  uint32_t channels;     /* 1 (gray, replicated), 3, or 4 (alpha is dropped) */
  uint64_t seed;         /* of the noise */
  int64_t timeout_ms;    /* from submit; 0: no timeout */
  int64_t priority;      /* larger runs first; equal priorities run in submission order */
  int32_t want_map;
  int32_t want_reconstruction;
  int32_t want_stages;
  void* user;
  diad_done done; /* called exactly once for each accepted request, on any thread */
  /* Called on the inference thread after each denoising step, never after done. Can be NULL. */
  diad_step on_step;
  /* Class whose normality entry judges the image; NULL or unknown: the entry of the most similar class. */
  const char* class_name;
  /* Receives the image's maps and vectors under class_name. Can be NULL, and can be freed before done. */
  diad_calibrator* calibrator;
  int64_t image_index; /* of the calibration image, >= 0; a repeated index replaces the image */
  int32_t in_memory;   /* 1: its vectors can be selected for the memory */
  /* 1: its maps count towards the statistics, and diad_calibrator_finish scores it. */
  int32_t in_statistics;
} diad_request;

/* Scores of calibration images, each computed as if calibration had not seen that image. Arrays of `count`
 * elements, ordered by index. */
typedef struct {
  int64_t count;
  const uint32_t* indices;
  const double* scores;
  const double* reconstruction; /* reconstruction evidence only */
  const double* memory;
  const double* peaks; /* maximum of each map */
} diad_unseen_scores;

/* Result of a calibration, freed with diad_calibration_free. */
typedef struct {
  const uint8_t* normality; /* file content for diad_load_options.normality */
  uint64_t normality_size;
  diad_unseen_scores images; /* judged by the entry of their class */
} diad_calibration;

typedef struct {
  uint64_t queued, running, completed, failed, cancelled, batches;
  double mean_batch;
  double queue_ms_p50, queue_ms_p99, queue_ms_mean; /* over the last 1,024 images */
  double compute_ms_p50, compute_ms_p99, compute_ms_mean;
} diad_stats;

/* Version of this interface. Reject a library whose version differs from DIAD_ENGINE_ABI. */
DIAD_EXPORT int32_t diad_engine_abi(void);

/* Returns JSON with engine, abi, libtorchBuilt, cudaDevices, cpuCapability and threads, or
 * NULL on failure. */
DIAD_EXPORT const char* diad_engine_version(void);

/* Loads a bundle; blocks. Loads of the same bundle with the same options share weights, thread and queue. */
DIAD_EXPORT int32_t diad_engine_load(const char* bundle, const diad_load_options* options,
                                     diad_engine** engine);

/* Returns JSON about a loaded bundle. The string lives as long as the engine. */
DIAD_EXPORT const char* diad_engine_info(diad_engine* engine);

/* Queues an image without blocking. */
DIAD_EXPORT int32_t diad_engine_submit(diad_engine* engine, const diad_request* request, uint64_t* id);

/* Cancels a pending request, which completes with ERR_DIAD_CANCELLED at once. Returns 1 if the request was
 * pending and 0 if it had already completed. */
DIAD_EXPORT int32_t diad_engine_cancel(diad_engine* engine, uint64_t id);

DIAD_EXPORT void diad_engine_stats(diad_engine* engine, diad_stats* stats);

/* Completes pending requests with ERR_DIAD_CLOSED, releases the weights if no other engine uses them, and
 * frees the engine. Blocks until the inference thread finishes its current layer. */
DIAD_EXPORT void diad_engine_close(diad_engine* engine);

DIAD_EXPORT void diad_engine_result_free(diad_result* result);

/* Starts a calibration. Fails with ERR_DIAD_INVALID_ARGUMENT if the bundle has no evidence. The calibrator
 * can outlive the engine. */
DIAD_EXPORT int32_t diad_calibrator_new(diad_engine* engine, diad_calibrator** calibrator);

/* Computes the calibration result from the images added so far. Blocks for seconds and uses as many threads
 * as the engine. `is_cancelled` can be NULL; it is polled, and a nonzero result stops the computation with
 * ERR_DIAD_CLOSED. The calibrator is not modified. Can be called from any thread. */
DIAD_EXPORT int32_t diad_calibrator_finish(diad_calibrator* calibrator, int32_t (*is_cancelled)(void* user),
                                           void* user, diad_calibration** calibration);

DIAD_EXPORT void diad_calibration_free(diad_calibration* calibration);

/* Requests that name the calibrator can still be pending; their results are discarded. */
DIAD_EXPORT void diad_calibrator_free(diad_calibrator* calibrator);

/* Starts timing every operator of all models in this process, which slows them down. A second start resets
 * the profile. */
DIAD_EXPORT int32_t diad_engine_profile_start(void);

/* Stops profiling. Returns JSON [{operator, calls, ms, gflop}], longest time first, valid until the next call
 * on this thread, or NULL on failure. gflop counts two operations per multiply-add of the direct algorithm,
 * or is null. */
DIAD_EXPORT const char* diad_engine_profile_end(void);

/* Returns the last failure on this thread, valid until the next call on this thread. */
DIAD_EXPORT diad_error diad_engine_last_error(void);

#ifdef __cplusplus
}
#endif
