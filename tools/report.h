// The report page as a file.
#pragma once

#include <string>
#include <vector>

#include "quantize/report_page.h"

namespace ballast {

/// Error when `path` cannot become a file: its folder is missing, or it is a folder. For before a long run.
void check_report_path(const std::string& path);
/// Writes report_page(sources); a file that was there is replaced whole.
void write_report(const std::string& path, const std::vector<ReportSource>& sources);

}  // namespace ballast
