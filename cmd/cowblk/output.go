package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// output is standard output that remembers its first error: a command whose output is lost has failed, whether or not
// the place that wrote it has looked.
type output struct {
	to  io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.to.Write(p)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}

// check adds to a command's error that its output was lost, once.
func (o *output) check(err error) error {
	if o.err == nil || errors.Is(err, o.err) {
		return err
	}
	return errors.Join(err, outputError(o.err))
}

// lostOutput is the error of what was printed so far.
func (a *app) lostOutput() error {
	if o, ok := a.out.(*output); ok && o.err != nil {
		return outputError(o.err)
	}
	return nil
}

// standardOutput is what a child process gets as it is, a terminal or a file.
func (a *app) standardOutput() io.Writer {
	if o, ok := a.out.(*output); ok {
		return o.to
	}
	return a.out
}

func outputError(err error) error { return fmt.Errorf("standard output: %w", err) }

// printJSON writes v indented: what --json prints is read by people too.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return outputError(err)
	}
	return nil
}

// say writes one line about what was done. With --json it is silent: the JSON says it.
func (a *app) say(format string, args ...any) {
	if !a.json {
		fmt.Fprintln(a.out, printable(fmt.Sprintf(format, args...)))
	}
}
