# The harness without its main(): checkop and `expar bench ops` are made of it.
#   cases_NAME.c  a family of ops; the list of families is made here
set(checkop_folder ${CMAKE_CURRENT_LIST_DIR})
file(GLOB case_files CONFIGURE_DEPENDS RELATIVE ${checkop_folder} ${checkop_folder}/cases_*.c)
set(declarations "")
set(entries "")
set(case_paths "")
foreach(file ${case_files})
    string(REGEX REPLACE "^cases_(.*)\\.c$" "\\1" family ${file})
    string(APPEND declarations "void ck_${family}_cases(ck_context *ctx);\n")
    string(APPEND entries "    ck_${family}_cases,\n")
    list(APPEND case_paths ${checkop_folder}/${file})
endforeach()
set(families ${CMAKE_BINARY_DIR}/checkop/families.c)
file(CONFIGURE OUTPUT ${families} @ONLY
    CONTENT "#include \"checkop.h\"\n\n@declarations@\nconst ck_family ck_families[] = {\n@entries@    NULL,\n};\n")

set(harness_paths ${families})
foreach(name checkop run image compare tolerance attention_slack gradient bench bench_gpu shapes shapes_load shapes_table shapes_users)
    list(APPEND harness_paths ${checkop_folder}/${name}.c)
endforeach()
add_library(checkop_harness OBJECT ${harness_paths} ${case_paths})
target_include_directories(checkop_harness PUBLIC ${checkop_folder} ${PROJECT_SOURCE_DIR}/include
    ${PROJECT_SOURCE_DIR}/src)
