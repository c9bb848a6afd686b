package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// errNotConfirmed is the answer no. The caller reports what was done before the question.
var errNotConfirmed = unconfirmedError{errors.New("not confirmed")}

// notConfirmed adds to the answer no that nothing was done before it; other errors stay.
func notConfirmed(err error) error {
	if errors.Is(err, errNotConfirmed) {
		return fmt.Errorf("%w; nothing was changed", err)
	}
	return err
}

// confirm asks a yes/no question on a terminal and returns nil for yes. Standard input of a script
// is never taken for an answer, nor is anything that was typed before the question. When ctx ends,
// confirm returns its error.
func (a *app) confirm(ctx context.Context, question string) error {
	if !a.terminal(a.in) || !a.terminal(a.err) {
		return unconfirmedf("%s\nno terminal to ask on: --yes confirms", question)
	}
	discardTyped(a.in)
	if _, err := fmt.Fprintf(a.err, "%s [y/N] ", printable(question)); err != nil {
		return errors.Join(errNotConfirmed, fmt.Errorf("the question: %w", err))
	}
	line, answered := abandonable(ctx, 0, func() string {
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if err != nil {
			return "" // end of input, also after "y" without Enter
		}
		return line
	})
	if !answered {
		fmt.Fprintln(a.err)
		return ctx.Err()
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	if line == "" {
		fmt.Fprintln(a.err)
		// every ioctl fails after a hang-up (tty_ioctl(4)); SIGHUP is on its way
		if !a.terminal(a.in) {
			return fmt.Errorf("%w: %w", context.Canceled, signalError{syscall.SIGHUP})
		}
	}
	return errNotConfirmed
}
