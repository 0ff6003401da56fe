// Rows of jsonl files, facts of texts, packed datasets.
#pragma once
#include <napi.h>

namespace tinyllama {

void register_dataset(Napi::Env env, Napi::Object exports);

}  // namespace tinyllama
