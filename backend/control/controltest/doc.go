// Package controltest lets tests connect as another user. The goroutine of [DialAs] changes the
// user of its own thread, connects, and ends with the thread before DialAs returns.
package controltest
