// Package sandboxtest makes kernels without landlock for tests.
package sandboxtest
