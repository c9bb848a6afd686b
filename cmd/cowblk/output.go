package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// output is a writer on standard output that keeps its first error, so that a command fails if its
// output is lost even if the caller ignored the error.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}

// check joins the error of lost output to err, once. If a command that changes something has no
// other error, the text says that the change was made.
func (o *output) check(cmd *cobra.Command, err error) error {
	switch {
	case o.err == nil:
		return err
	case o.onlyLostOutput(err) && cmd != nil && changingCommands[cmd.Name()] &&
		!cmd.Flags().Changed("help"):
		return fmt.Errorf("%w\n%s has succeeded: only its output is lost", outputError(o.err),
			cmd.CommandPath())
	case err != nil && strings.Contains(err.Error(), o.err.Error()):
		return err // it, or that of a later write
	}
	return errors.Join(err, outputError(o.err))
}

// changingCommands names the commands that change something and then report it.
var changingCommands = map[string]bool{
	"import": true, "create": true, "promote": true, "rollback": true, "rm": true,
	"trust-base": true,
	"attach":     true, "detach": true, "resume": true, "stop": true,
}

// onlyLostOutput reports whether err is nothing but lost output.
func (o *output) onlyLostOutput(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all := joined.Unwrap()
		return len(all) == 1 && o.onlyLostOutput(all[0])
	}
	return err == nil || errors.Unwrap(err) == o.err
}

// outputErr returns the error of the output so far.
func (a *app) outputErr() error {
	if o, ok := a.out.(*output); ok && o.err != nil {
		return outputError(o.err)
	}
	return nil
}

// standardOutput returns the underlying writer, for a child process.
func (a *app) standardOutput() io.Writer {
	if o, ok := a.out.(*output); ok {
		return o.w
	}
	return a.out
}

func outputError(err error) error { return fmt.Errorf("standard output: %w", err) }

// printJSON writes v as indented JSON.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return outputError(err)
	}
	return nil
}

// printf writes one line of text. With --json it writes nothing.
func (a *app) printf(format string, args ...any) {
	if !a.json {
		fmt.Fprintln(a.out, printable(fmt.Sprintf(format, args...)))
	}
}
