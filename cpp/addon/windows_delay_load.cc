// Windows only: Node-API is imported from "node.exe". The hook resolves it to the program that loads the
// addon, whatever its name is.
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <delayimp.h>
#include <windows.h>

#include <cstring>

namespace {

FARPROC WINAPI answer_for_node(unsigned int event, DelayLoadInfo* info) {
  const bool asks_for_node = event == dliNotePreLoadLibrary && _stricmp(info->szDll, "node.exe") == 0;
  return asks_for_node ? reinterpret_cast<FARPROC>(GetModuleHandleW(nullptr)) : nullptr;
}

}  // namespace

extern "C" const PfnDliHook __pfnDliNotifyHook2 = answer_for_node;
#endif
