package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"cowblk/cow/imagefile"
	"cowblk/cow/shell"
	"cowblk/cow/store"
)

func newImport(a *app) *cobra.Command {
	var o store.ImportOptions
	cmd := &cobra.Command{
		Use:   "import FILE NAME",
		Short: "Make an image of a raw or qcow2 file",
		Long: `Make an image of a raw or qcow2 file, as a base of disks.

The content is copied sparsely, made durable, read back and compared; a digest of it is
recorded. The time depends on the amount of data, not on the size. The file itself is not
changed and not needed afterwards. While it is read, QEMU's image locks prevent writes to
it; a file that another process has open for writing, or that the system uses (a mounted
device), is refused unless --force-share is given.

A qcow2 may be compressed. A qcow2 with backing files is refused with a list of them,
unless --backing is given: their content becomes part of the image. Other formats,
compressed files and archives are refused with the command that converts or unpacks them;
--format raw accepts any file.`,
		Example: `  cowblk import golden.qcow2 debian-12
  cowblk import --backing overlay.qcow2 configured
  cowblk import --format raw disk.img fedora
  cowblk import /dev/vg0/golden golden`,
		Args: exactArgs("FILE", "NAME"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion,
			cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault // a file
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			bars := a.newBars()
			o.Progress = bars.update
			img, err := importInterruptible(cmd.Context(), s, args[0], args[1], o)
			bars.end()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(img)
			}
			for _, b := range img.Backing {
				a.printf("with the content of its backing file %s", b)
			}
			a.printf("image %s: %s, chunk digest %s", img.Name, bytesText(img.Size),
				img.ChunkSHA256)
			if img.SHA256 != "" {
				a.printf("SHA-256 of the whole: %s", img.SHA256)
			}
			a.printf("next: %s", a.command("create", "vm1", "--from", img.Name))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Format, "format", "",
		"`FORMAT` of the file, raw or qcow2 (default: found from its content)")
	f.BoolVar(&o.Backing, "backing", false, "include the backing files of a qcow2 in the image")
	f.BoolVar(&o.ForceShare, "force-share", false,
		"read a file that another process has open for writing: the result may mix\nold and new data")
	f.BoolVar(&o.SHA256, "sha256", false,
		"also record the SHA-256 of the whole content, including holes: the time\ndepends on the size")
	_ = cmd.RegisterFlagCompletionFunc("format",
		cobra.FixedCompletions([]cobra.Completion{imagefile.Raw, imagefile.Qcow2},
			cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// importGrace bounds the clean-up of an interrupted import.
const importGrace = 5 * time.Second

// importInterruptible is Import that also returns when ctx ends during a system call that does not
// return, as on a network file system whose server is gone. The unfinished import stays in the
// store as a stale transaction, which the next command removes.
func importInterruptible(ctx context.Context, s *store.Store, path, name string,
	o store.ImportOptions) (*store.Image, error) {
	var img *store.Image
	err, returned := abandonable(ctx, importGrace, func() (err error) {
		img, err = s.Import(ctx, path, name, o)
		return err
	})
	if !returned {
		return nil, interruptedf(
			"import of %s, because the file or the store does not answer; the next command that changes the store cleans up",
			shell.Text(path))
	}
	return img, err
}

// bars shows one progress bar per phase on a terminal.
type bars struct {
	out   *mpb.Progress // nil: not on a terminal
	phase string
	bar   *mpb.Bar
}

func (a *app) newBars() *bars {
	if a.json || !a.terminal(a.err) {
		return &bars{}
	}
	return &bars{out: mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(60))}
}

func (b *bars) update(phase string, done, total int64) {
	if b.out == nil {
		return
	}
	if phase != b.phase {
		b.phase = phase
		b.bar = b.out.AddBar(total,
			mpb.PrependDecorators(decor.Name(phase, decor.WC{W: 7, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"),
				decor.Percentage(decor.WC{W: 6})))
	}
	b.bar.SetCurrent(done)
}

// end leaves the bars on the screen, complete or where the work stopped.
func (b *bars) end() {
	if b.out == nil {
		return
	}
	if b.bar != nil && !b.bar.Completed() {
		b.bar.Abort(false)
	}
	b.out.Wait()
}
