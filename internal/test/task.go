package test

import (
	"regexp"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Task is a function that runs on a goroutine of its own.
type Task struct {
	done chan struct{}
	err  error // valid once done is closed
}

// Go starts f.
func Go(f func() error) *Task {
	k := &Task{done: make(chan struct{})}
	go func() { k.err = f(); close(k.done) }()
	return k
}

// Ends is EndsWithin for a task that may wait without limit.
func (k *Task) Ends() bool { return k.EndsWithin(10 * time.Minute) }

// EndsWithin reports whether the task ends by itself within d. It must be called in a bubble of
// testing/synctest, where d passes as soon as all goroutines of the bubble wait.
func (k *Task) EndsWithin(d time.Duration) bool {
	time.Sleep(d)
	synctest.Wait()
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

// WaitsIn waits until a goroutine waits in function, and reports false if the task ends first. It
// does not see whether that wait has a limit: use Ends where a bubble can hold the task, which it
// cannot if goroutines wait in the kernel or for a mutex.
func (k *Task) WaitsIn(t testing.TB, function string) bool {
	t.Helper()
	ended := false
	Eventually(t, "the task ends or waits in "+function, func() bool {
		select {
		case <-k.done:
			ended = true
			return true
		default:
			return Waiting(function)
		}
	})
	return !ended
}

// Waiting reports whether a goroutine waits in function, named as in a stack trace:
// "cow.(*Disk).Close".
func Waiting(function string) bool {
	buf := make([]byte, 1<<20)
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, function+"(") && waiting.MatchString(stack) {
			return true
		}
	}
	return false
}

// waiting matches the stack of a goroutine that waits for another one.
var waiting = regexp.MustCompile(`^goroutine \d+ \[(chan receive|select|sync\.)`)

// Wait waits for the end and returns the error of f.
func (k *Task) Wait() error {
	<-k.done
	return k.err
}

// Must waits until the task has ended, without an error.
func (k *Task) Must(t testing.TB) {
	t.Helper()
	select {
	case <-k.done:
		Must(t, k.err)
	case <-time.After(limit):
		t.Fatal("the task does not end")
	}
}
