// Package eventfd makes, signals and drains eventfds (eventfd(2)): a counter in the kernel that one
// side adds to and the other waits for. The sides may be goroutines or processes. It alone
// makes eventfds; tests may make others. It imports no other package of this module.
package eventfd
