package c_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestComponent builds the component of ESP-IDF with a stand-in for its build system, and
// for its header of random numbers. As there, the component is read a first time for what it
// requires, without its configuration, and only what it said then can be included.
func TestComponent(t *testing.T) {
	if _, err := exec.LookPath("cmake"); err != nil {
		t.Fatalf("%v: install cmake", err)
	}
	component, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"esp_random.h": "#include <stddef.h>\nvoid esp_fill_random(void *p, size_t n);\n",
		"CMakeLists.txt": `cmake_minimum_required(VERSION 3.19)
project(device C)
set(CMAKE_C_STANDARD 99)
function(idf_component_register)
    cmake_parse_arguments(A "" "" "SRCS;INCLUDE_DIRS;REQUIRES;PRIV_REQUIRES" ${ARGN})
    if(A_UNPARSED_ARGUMENTS)
        message(FATAL_ERROR "no argument of idf_component_register: ${A_UNPARSED_ARGUMENTS}")
    endif()
    foreach(needed lwip mbedtls esp_hw_support)
        if(NOT needed IN_LIST REQUIRED)
            message(FATAL_ERROR "${needed} is not required before the configuration is known: ${REQUIRED}")
        endif()
    endforeach()
    add_library(iott STATIC ${A_SRCS})
    target_include_directories(iott PUBLIC ${A_INCLUDE_DIRS} ${CMAKE_SOURCE_DIR})
    target_compile_options(iott PRIVATE -Wall -Wextra -Werror)
    target_compile_definitions(iott PUBLIC ESP_PLATFORM)
    set(COMPONENT_LIB iott PARENT_SCOPE)
endfunction()
execute_process(COMMAND ${CMAKE_COMMAND} -P ${CMAKE_SOURCE_DIR}/early.cmake OUTPUT_VARIABLE REQUIRED COMMAND_ERROR_IS_FATAL ANY)
set(CONFIG_IOTT_SOCKETS 1)
set(CONFIG_IOTT_TLS y)
set(CONFIG_IOTT_BRIDGE y)
set(CONFIG_IOTT_BRIDGE_STREAMS 2)
add_subdirectory(` + component + ` iott)
`,
		"early.cmake": `cmake_minimum_required(VERSION 3.19)
macro(idf_component_register)
    cmake_parse_arguments(A "" "" "SRCS;INCLUDE_DIRS;REQUIRES;PRIV_REQUIRES" ${ARGN})
    execute_process(COMMAND ${CMAKE_COMMAND} -E echo_append "${A_REQUIRES};${A_PRIV_REQUIRES}")
    return()
endmacro()
include(` + component + `/CMakeLists.txt)
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build(t, "cmake", "-S", dir, "-B", filepath.Join(dir, "build"))
	build(t, "cmake", "--build", filepath.Join(dir, "build"))
}
