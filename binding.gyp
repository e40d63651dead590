{
  "targets": [
    {
      "target_name": "ubd",
      "sources": [
        "native/addon.cc",
        "native/calls.cc",
        "native/extents.cc",
        "native/memory.cc",
        "native/process.cc",
        "native/ring.cc",
        "native/sys.cc",
        "native/tree.cc"
      ],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=9", "NAPI_DISABLE_CPP_EXCEPTIONS"],
      "cflags": ["-Wall", "-Wextra", "-fvisibility=hidden"],
      "cflags_cc": ["-std=c++20", "-fvisibility-inlines-hidden"],
      "cflags_cc!": ["-std=gnu++17", "-std=c++17"]
    },
    {
      "target_name": "ubd-apart",
      "type": "executable",
      "sources": ["native/apart/main.cc"],
      "cflags": ["-Wall", "-Wextra"],
      "cflags_cc": ["-std=c++20"],
      "cflags_cc!": ["-std=gnu++17", "-std=c++17"],
      # It starts at each attach: no library but libc is loaded.
      "ldflags": ["-Wl,--as-needed"]
    }
  ]
}
