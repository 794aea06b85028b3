add_executable(fuzz_safetensors fuzz_safetensors.c)
target_link_libraries(fuzz_safetensors PRIVATE xp_checkpoint)
add_test(NAME fuzz_safetensors COMMAND fuzz_safetensors 3)
set_tests_properties(fuzz_safetensors PROPERTIES TIMEOUT 60 LABELS fuzz)
