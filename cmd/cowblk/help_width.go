package main

import (
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// maxHelpWidth is the number of columns of the help, unless the terminal has fewer.
const maxHelpWidth = 100

// cobra keeps these settings in the process, not in a command.
func init() {
	cobra.EnableCommandSorting = false // the help lists commands in the order of their use
	cobra.AddTemplateFunc("wrapFlags", func(width int, flags *pflag.FlagSet) string {
		flags.VisitAll(func(f *pflag.Flag) { f.Usage = strings.ReplaceAll(f.Usage, "\n", " ") })
		return flags.FlagUsagesWrapped(width)
	})
	cobra.AddTemplateFunc("wrapText", wrapText)
}

// wrapHelp wraps the texts and options of the help.
func wrapHelp(root *cobra.Command, a *app) {
	usage, text := root.UsageTemplate(), root.HelpTemplate()
	setWidth := func(width int) {
		n := strconv.Itoa(width)
		root.SetUsageTemplate(strings.NewReplacer(
			".LocalFlags.FlagUsages ", "wrapFlags "+n+" .LocalFlags ",
			".InheritedFlags.FlagUsages ", "wrapFlags "+n+" .InheritedFlags ",
		).Replace(usage))
		root.SetHelpTemplate(strings.Replace(text, "{{. | ", "{{wrapText "+n+" . | ", 1))
	}
	setWidth(maxHelpWidth)
	// cobra prints an error of the output itself: run reports it.
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if a.width != nil {
			if columns := a.width(a.standardOutput()); columns > 0 {
				setWidth(min(columns, maxHelpWidth))
			}
		}
		out := cmd.OutOrStdout()
		var text strings.Builder
		cmd.SetOut(&text)
		help(cmd, args)
		cmd.SetOut(out)
		_, _ = io.WriteString(out, text.String())
	})
}

// wrapText makes the lines of a text at most width columns long. Words of a line that is too long
// move to the next one, unless that one is indented or empty. Rests of indented lines keep their
// indentation.
func wrapText(width int, text string) string {
	var out []string
	rest := "" // of the line before
	for line := range strings.SplitSeq(text, "\n") {
		body := strings.TrimLeft(line, " ")
		indent := line[:len(line)-len(body)]
		if rest != "" {
			if strings.HasPrefix(rest, " ") || indent != "" || body == "" {
				out = append(out, rest)
			} else {
				line = rest + " " + line
			}
			rest = ""
		}
		wrapped := false
		for len(line) > width {
			at := strings.LastIndexByte(line[:width+1], ' ')
			if at <= len(indent) {
				break // one long word
			}
			out = append(out, line[:at])
			line, wrapped = indent+strings.TrimLeft(line[at:], " "), true
		}
		if wrapped {
			rest = line
		} else {
			out = append(out, line)
		}
	}
	if rest != "" {
		out = append(out, rest)
	}
	return strings.Join(out, "\n")
}
