"""vLLM's sleep mode over hbmalloc."""
