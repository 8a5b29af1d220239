"""The program `dashinfer-lite`: chat, generate, bench, info, quantize, eval."""
