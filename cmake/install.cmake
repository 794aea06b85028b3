install(TARGETS expar_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET expar)
    install(TARGETS expar RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY include/expar DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
# The prefix as seen from the .pc file: `cmake --install BUILD --prefix DIR` may choose another one.
file(RELATIVE_PATH XP_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" XP_PC_TO_PREFIX "${XP_PC_TO_PREFIX}")
configure_file(cmake/expar.pc.in ${CMAKE_BINARY_DIR}/expar.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/expar.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
# find_package(expar), relocatable as well
include(CMakePackageConfigHelpers)
set(XP_CMAKE_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/expar)
configure_package_config_file(cmake/expar-config.cmake.in ${CMAKE_BINARY_DIR}/expar-config.cmake
    INSTALL_DESTINATION ${XP_CMAKE_FOLDER} PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/expar-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/expar-config.cmake ${CMAKE_BINARY_DIR}/expar-config-version.cmake
    DESTINATION ${XP_CMAKE_FOLDER})
if(TARGET expar_cuda)
    install(TARGETS expar_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
if(TARGET expar_mpi)
    install(TARGETS expar_mpi LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
# What `expar plan --gpu NAME` reads: found from bin/ and from lib/.
install(DIRECTORY configs/hardware/ DESTINATION ${CMAKE_INSTALL_DATADIR}/expar/hardware FILES_MATCHING PATTERN "*.toml")
