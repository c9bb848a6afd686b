package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"cowblk/cow/store"
)

func newImport(a *app) *cobra.Command {
	var o store.ImportOptions
	cmd := &cobra.Command{
		Use:   "import FILE NAME",
		Short: "Make an image of a raw or qcow2 file",
		Long: `Make an image of a raw or qcow2 file, for disks to lie on.

The content is copied sparse, made durable, read back and compared; a digest of it is
recorded. That takes the time of the data in the file, whatever its size. The file
itself is not changed and not needed afterwards; while it is read, QEMU's image locks
keep others from writing to it, and a file that somebody has open for writing is
refused.

A qcow2 may be compressed. One that names backing files is refused with the list of
them, unless --backing: what is in these files becomes part of the image. Other formats,
compressed files and archives are refused with the command that converts or unpacks
them; --format raw takes any file as it is.`,
		Example: `  cowblk import golden.qcow2 debian-12
  cowblk import --backing overlay.qcow2 configured
  cowblk import --format raw disk.img fedora
  cowblk import /dev/vg0/golden golden`,
		Args: exactArgs("FILE", "NAME"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
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
				a.say("with the content of its backing file %s", b)
			}
			a.say("image %s: %s, chunk digest %s", img.Name, bytesText(img.Size), img.ChunkSHA256)
			if img.SHA256 != "" {
				a.say("SHA-256 of the whole: %s", img.SHA256)
			}
			a.say("next: %s", a.command("create", "vm1", "--from", img.Name))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Format, "format", "", "`FORMAT` of the file, raw or qcow2 (default: found from its content)")
	f.BoolVar(&o.Backing, "backing", false, "let the backing files that a qcow2 names become part of the image")
	f.BoolVar(&o.ForceShare, "force-share", false, "read a file that somebody has open for writing: what comes of it may be\nof two moments")
	f.BoolVar(&o.SHA256, "sha256", false, "also record the SHA-256 of the whole content, holes included: its time\nfollows the size")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{store.FormatRaw, store.FormatQcow2}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// importGrace is how long an interrupted import may take to clean up, before it is left as it is.
const importGrace = 5 * time.Second

// importInterruptible is Import that ends when ctx does, also where the kernel waits for a file that does not answer (a
// file system of a server that is gone): the process ends then with the call under way. What it leaves in the store is
// work of a dead process, which the next command removes.
func importInterruptible(ctx context.Context, s *store.Store, path, name string, o store.ImportOptions) (*store.Image, error) {
	type result struct {
		img *store.Image
		err error
	}
	done := make(chan result, 1)
	go func() {
		img, err := s.Import(ctx, path, name, o)
		done <- result{img, err}
	}()
	select {
	case r := <-done:
		return r.img, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.img, r.err
	case <-time.After(importGrace):
		return nil, interruptedf("import of %s, while the file or the store does not answer; the next command that changes the store cleans up",
			store.PathText(path))
	}
}

// bars shows one progress bar per phase, to a person only.
type bars struct {
	out   *mpb.Progress // nil: nobody is watching
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
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Percentage(decor.WC{W: 6})))
	}
	b.bar.SetCurrent(done)
}

// end leaves the bars as they are: complete, or where the import stopped.
func (b *bars) end() {
	if b.out == nil {
		return
	}
	if b.bar != nil && !b.bar.Completed() {
		b.bar.Abort(false)
	}
	b.out.Wait()
}
