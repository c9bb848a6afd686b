package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
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

// check adds to a command's error that its output was lost, once; and if nothing else is wrong with a command that
// changes something, that it has done so.
func (o *output) check(cmd *cobra.Command, err error) error {
	switch {
	case o.err == nil:
		return err
	case o.alone(err) && cmd != nil && changes[cmd.Name()] && !cmd.Flags().Changed("help"):
		return fmt.Errorf("%w\n%s has done what it was asked for: only its output is lost", outputError(o.err), cmd.CommandPath())
	case err != nil && strings.Contains(err.Error(), o.err.Error()):
		return err // it, or that of a later write
	}
	return errors.Join(err, outputError(o.err))
}

// changes are the commands that do something and then say so.
var changes = map[string]bool{
	"import": true, "create": true, "promote": true, "rollback": true, "rm": true, "trust-base": true,
	"attach": true, "detach": true, "resume": true, "stop": true,
}

// alone reports whether err is no more than that output was lost.
func (o *output) alone(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all := joined.Unwrap()
		return len(all) == 1 && o.alone(all[0])
	}
	return err == nil || errors.Unwrap(err) == o.err
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
