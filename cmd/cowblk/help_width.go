package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// maxHelpWidth is the number of columns of the help, unless the terminal has fewer.
const maxHelpWidth = 100

// wrapHelp wraps the texts and options of the help.
func wrapHelp(root *cobra.Command, a *app) {
	width := func() int {
		if a.width != nil {
			if columns := a.width(a.standardOutput()); columns > 0 {
				return min(columns, maxHelpWidth)
			}
		}
		return maxHelpWidth
	}
	cobra.AddTemplateFunc("wrapFlags", func(flags *pflag.FlagSet) string {
		flags.VisitAll(func(f *pflag.Flag) { f.Usage = strings.ReplaceAll(f.Usage, "\n", " ") })
		return flags.FlagUsagesWrapped(width())
	})
	cobra.AddTemplateFunc("wrapText", func(text string) string { return wrapText(text, width()) })
	root.SetUsageTemplate(strings.NewReplacer(
		".LocalFlags.FlagUsages ", "wrapFlags .LocalFlags ",
		".InheritedFlags.FlagUsages ", "wrapFlags .InheritedFlags ",
	).Replace(root.UsageTemplate()))
	root.SetHelpTemplate(strings.Replace(root.HelpTemplate(), "{{. | ", "{{wrapText . | ", 1))
	// cobra prints an error of the output itself: run reports it.
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
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
func wrapText(text string, width int) string {
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
