// The JsonRows class: rows of jsonl files.
#pragma once
#include <napi.h>

namespace tinyllama {

Napi::Function define_json_rows(Napi::Env env);

}  // namespace tinyllama
