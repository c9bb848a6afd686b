package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// errNotConfirmed is the answer no: what was done before the question, the caller says.
var errNotConfirmed = unconfirmedError{errors.New("not confirmed")}

// notConfirmed adds to the answer no that nothing was done before it; other errors stay.
func notConfirmed(err error) error {
	if errors.Is(err, errNotConfirmed) {
		return fmt.Errorf("%w; nothing was changed", err)
	}
	return err
}

// confirm asks a yes/no question. Only a terminal is asked: what a script has on its standard input was not written as
// an answer, nor was what somebody has typed before the question. The error says why the answer is not yes, or is the
// context's: a signal ends the question at once.
func (a *app) confirm(ctx context.Context, question string) error {
	if !a.terminal(a.in) || !a.terminal(a.err) {
		return unconfirmedf("%s\nthere is no terminal to ask on: --yes confirms", question)
	}
	discardTyped(a.in)
	if _, err := fmt.Fprintf(a.err, "%s [y/N] ", printable(question)); err != nil {
		return errors.Join(errNotConfirmed, fmt.Errorf("the question: %w", err))
	}
	answer := make(chan string, 1)
	go func() { // left behind by a signal, which ends the process
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if err != nil {
			line = "" // the end of the input, also after a "y" without Enter
		}
		answer <- line
	}()
	select {
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		if line == "" {
			fmt.Fprintln(a.err)
			if !a.terminal(a.in) { // every ioctl fails after a hang-up (tty_ioctl(4)); SIGHUP is on its way
				return fmt.Errorf("%w: %w", context.Canceled, signalError{unix.SIGHUP})
			}
		}
		return errNotConfirmed
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return ctx.Err()
	}
}

// discardTyped drops what was typed on a terminal and not read (tcflush(3), TCIFLUSH).
func discardTyped(in any) {
	if f, ok := in.(*os.File); ok {
		_ = unix.IoctlSetInt(int(f.Fd()), unix.TCFLSH, unix.TCIFLUSH)
	}
}
