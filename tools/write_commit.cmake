# Writes HEADER with the commit of SOURCE, or "unknown" outside a repository.
set(commit "unknown")
if(GIT)
  execute_process(COMMAND ${GIT} describe --always --abbrev=12 --exclude=* WORKING_DIRECTORY ${SOURCE}
    OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(commit ${found})
  endif()
endif()
file(WRITE ${HEADER} "inline constexpr const char* kCommit = \"${commit}\";\n")
