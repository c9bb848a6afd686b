// Package sandboxtest simulates kernels without landlock.
package sandboxtest
