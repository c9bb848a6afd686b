package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
)

// confirm asks a yes/no question. Only a terminal is asked: what a script has on its standard input was not written as
// an answer. The error says why the answer is not yes, or is the context's: a signal ends the question at once.
func (a *app) confirm(ctx context.Context, question string) error {
	if !a.terminal(a.in) || !a.terminal(a.err) {
		return unconfirmedf("%s\nthere is no terminal to ask on: --yes confirms", question)
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
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
		}
		return unconfirmedf("not confirmed; nothing was changed")
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return ctx.Err()
	}
}
