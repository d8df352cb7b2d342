/* C interface of the diad engine: what the Node addon and the diad-engine executable use.
 *
 * No C++ type and no exception crosses it. Functions that can fail return 0 on success and another value on failure, after which
 * diad_engine_last_error describes it on the same thread. Strings are UTF-8. */
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
  const char* code;    /* ERR_DIAD_..., see docs/architecture.md */
  const char* message; /* what was wrong, with which value, and what to do */
} diad_error;

typedef struct {
  const char* device;               /* "auto", "cpu", "cuda" or "cuda:N" */
  const char* precision;            /* "float32", "bfloat16", "float16" or "int8" */
  int32_t threads;                  /* intra-op threads; 0: LibTorch's default */
  int32_t max_batch;                /* images in one batch, >= 1 */
  int32_t max_delay_ms;             /* how long a batch that is not full may wait for more, >= 0 */
  int32_t queue_limit;              /* waiting images before submit fails with ERR_DIAD_QUEUE_FULL, >= 1 */
  int32_t verify;                   /* 0: file hashes are not checked (sizes are) */
  int32_t warmup;                   /* 0: the first image pays for lazy initialization */
  const int32_t* preferred_batches; /* sizes that are taken as soon as so many wait, ascending, 1 to max_batch; may be NULL */
  int32_t preferred_count;
  int32_t (*is_cancelled)(void* user); /* NULL, or asked now and then while it loads; not 0 ends that with ERR_DIAD_CLOSED */
  void* user;                          /* of is_cancelled */
  const char* normality;               /* file that a calibration wrote, or NULL: map and score are the published ones */
} diad_load_options;

/* What normal images look like: filled by requests that name it, then finished. */
typedef struct diad_calibrator diad_calibrator;

/* One intermediate result, row-major float32. */
typedef struct {
  const char* name;
  const int64_t* shape;
  int32_t dimensions;
  const float* values;
} diad_stage;

/* Milliseconds. queue: from submit to the start of the batch; compute: of the batch; the others split it. */
typedef struct {
  double queue, compute, resize, encode, denoise, decode, extract, map;
} diad_timings;

/* What one image gave; freed with diad_engine_result_free. On failure error.code is set and nothing else. */
typedef struct {
  diad_error error; /* code NULL: success */
  double score;
  int32_t size;                  /* S: side of map and reconstruction */
  const float* map;              /* [S, S], or NULL when not asked for */
  const uint8_t* reconstruction; /* RGB8 [S, S, 3], or NULL when not asked for */
  const diad_stage* stages;
  int32_t stage_count;
  int32_t batch_size; /* images that were computed together */
  diad_timings timings;
  int32_t has_evidence;           /* 1 with a normality: score and map are the combined ones, and the next three are set */
  double evidence_reconstruction; /* scores of the two kinds of evidence alone */
  double evidence_memory;
  const char* class_name; /* whose entry of the normality judged the image; "": that of all images */
} diad_result;

typedef void (*diad_done)(void* user, diad_result* result);
typedef void (*diad_step)(void* user, int32_t step, int32_t total);

typedef struct {
  const uint8_t* pixels; /* RGB, RGBA or gray, 8 bits, rows without gaps; copied by submit */
  uint32_t width;        /* pixels */
  uint32_t height;       /* pixels */
  uint32_t channels;     /* 1 (repeated), 3, or 4 (alpha dropped) */
  uint64_t seed;         /* of the noise */
  int64_t timeout_ms;    /* from submit; 0: none */
  int64_t priority;      /* larger goes first; equals in the order of submission */
  int32_t want_map;
  int32_t want_reconstruction;
  int32_t want_stages;
  void* user;
  diad_done done;              /* called exactly once for a request that submit accepted, from any thread */
  diad_step on_step;           /* NULL, or called after each denoising step from the inference thread, never after done */
  const char* class_name;      /* whose entry of the normality judges the image; NULL or unknown: that of the most similar class */
  diad_calibrator* calibrator; /* NULL, or receives the image's maps and vectors under class_name; may be freed before done */
  int64_t image_index;         /* of the calibration image, >= 0; the same index again replaces the image */
  int32_t in_memory;           /* its vectors may be chosen for the memory */
  int32_t in_statistics;       /* its maps count for the statistics, and it is scored by diad_calibrator_finish */
} diad_request;

/* Scores of calibration images, each as of an image that calibration has not seen; arrays of `count` elements, by index. */
typedef struct {
  int64_t count;
  const uint32_t* indices;
  const double* scores;
  const double* reconstruction; /* of that evidence alone */
  const double* memory;
  const double* peaks; /* maxima of the maps */
} diad_unseen_scores;

/* What a calibration gave; freed with diad_calibration_free. */
typedef struct {
  const uint8_t* normality; /* the file's bytes, for diad_load_options.normality */
  uint64_t normality_size;
  diad_unseen_scores images; /* judged by the entry of their class */
} diad_calibration;

typedef struct {
  uint64_t queued, running, completed, failed, cancelled, batches;
  double mean_batch;
  double queue_ms_p50, queue_ms_p99, queue_ms_mean; /* over the last 1,024 images */
  double compute_ms_p50, compute_ms_p99, compute_ms_mean;
} diad_stats;

/* The interface's version: refuse a library whose number differs from DIAD_ENGINE_ABI. */
DIAD_EXPORT int32_t diad_engine_abi(void);

/* JSON with engine, abi, libtorchBuilt, libtorchRunning, cudaDevices, cpuCapability, threads; NULL on failure. */
DIAD_EXPORT const char* diad_engine_version(void);

/* Loads a bundle; blocks. Loads of one bundle with the same options share weights, thread and queue. */
DIAD_EXPORT int32_t diad_engine_load(const char* bundle, const diad_load_options* options, diad_engine** engine);

/* JSON about a loaded bundle; lives as long as the engine. */
DIAD_EXPORT const char* diad_engine_info(diad_engine* engine);

/* Queues an image; does not block. */
DIAD_EXPORT int32_t diad_engine_submit(diad_engine* engine, const diad_request* request, uint64_t* id);

/* Completes a pending request with ERR_DIAD_CANCELLED at once; returns 1 if there was one, 0 if it was done already. */
DIAD_EXPORT int32_t diad_engine_cancel(diad_engine* engine, uint64_t id);

DIAD_EXPORT void diad_engine_stats(diad_engine* engine, diad_stats* stats);

/* Completes what is pending with ERR_DIAD_CLOSED, releases the weights if nobody else uses them, frees the engine; blocks until the
 * inference thread has come to the end of a layer. */
DIAD_EXPORT void diad_engine_close(diad_engine* engine);

DIAD_EXPORT void diad_engine_result_free(diad_result* result);

/* Begins a calibration; fails with ERR_DIAD_INVALID_ARGUMENT where the bundle has no evidence. It may outlive the engine. */
DIAD_EXPORT int32_t diad_calibrator_new(diad_engine* engine, diad_calibrator** calibrator);

/* Computes the outcome for what the calibrator has received; blocks for seconds, with as many threads as the engine has. `is_cancelled` is
 * NULL, or asked now and then; not 0 ends it with ERR_DIAD_CLOSED. The calibrator stays as it is. Any thread. */
DIAD_EXPORT int32_t diad_calibrator_finish(diad_calibrator* calibrator, int32_t (*is_cancelled)(void* user), void* user,
                                           diad_calibration** calibration);

DIAD_EXPORT void diad_calibration_free(diad_calibration* calibration);

/* Requests that name it may still be pending; what they give is then lost. */
DIAD_EXPORT void diad_calibrator_free(diad_calibrator* calibrator);

/* Begins to time every operator of this process's models; costs speed. A second start begins anew. */
DIAD_EXPORT int32_t diad_engine_profile_start(void);

/* Ends that. JSON [{operator, calls, ms, gflop}], most time first: gflop counts two for each product of a plain sum, or is null. Valid
 * until the next call on this thread; NULL on failure. */
DIAD_EXPORT const char* diad_engine_profile_end(void);

/* The last failure on this thread; valid until the next call on it. */
DIAD_EXPORT diad_error diad_engine_last_error(void);

#ifdef __cplusplus
}
#endif
