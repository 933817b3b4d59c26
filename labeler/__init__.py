"""Run a teacher over text with vLLM and write its soft labels as a label set.

The public interface is the command line (`labeler --help`) and the files that it writes, which the
package `schemas` reads.
"""

__all__: list[str] = []
