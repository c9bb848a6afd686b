package main

import (
	"context"
	"fmt"
)

// interruptedError is an interruption of what was done in part.
type interruptedError struct{ what string }

func (e *interruptedError) Error() string { return e.what }
func (e *interruptedError) Unwrap() error { return context.Canceled }

func interruptedf(format string, args ...any) error {
	return &interruptedError{fmt.Sprintf(format, args...)}
}
