package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/agent"
)

// enrollTime bounds an attempt to enrol, over all servers.
const enrollTime = 90 * time.Second

// enroll makes a claim code the device's own secret. An error is the configuration's.
func enroll(o *options, stdout, stderr io.Writer) (int, error) {
	config, err := o.reach(stderr)
	switch {
	case err != nil:
		return 0, err
	case o.device == "":
		return 0, errNoDevice
	case o.code == "":
		return 0, errors.New("--code is needed: what `caddy iottunnel code create` has printed at the edge, or its operator has sent")
	case o.tokenFile == "":
		return 0, errors.New("--token-file is needed: where the secret is to be kept, such as /etc/iottunnel/token")
	}
	if config.Device, err = o.deviceID(); err != nil {
		return 0, err
	}
	keep, err := newKeeping(o.tokenFile, o.force) // not after the code was used up in vain
	if err != nil {
		return 0, fmt.Errorf("%s: %w", o.name("token-file"), err)
	}
	defer keep.drop()
	ctx, cancel := context.WithTimeoutCause(context.Background(), enrollTime, fmt.Errorf("no answer within %v", enrollTime))
	defer cancel()
	defer untilSignal(cancel)()
	token, err := agent.Enroll(ctx, config, o.code)
	if wrong := new(agent.ConfigError); errors.As(err, &wrong) {
		return 0, o.named(err)
	}
	if err != nil {
		fmt.Fprintf(stderr, "iottunnel-agent: enroll: %v\n%s\n", err, cureOfEnroll(err, config.Device))
		return exitStatus(err), nil
	}
	if err := keep.store(token); err != nil {
		fmt.Fprintf(stderr, "iottunnel-agent: enroll: %s is enrolled, but its secret is lost: %v\n"+
			"Ask the edge's operator for a code that is made for this device, and enrol again.\n", config.Device, err)
		return exitFailed, nil
	}
	fmt.Fprintf(stdout, "%s is enrolled; its secret is in %s\n", config.Device, o.tokenFile)
	return exitOK, nil
}

// cureOfEnroll says what helps against a failure.
func cureOfEnroll(err error, device string) string {
	var refused *agent.RefusedError
	switch {
	case !errors.As(err, &refused):
		return "No edge was reached: iottunnel-agent check, with the same flags, says why. The code can be tried again; it was used up if the answer was lost."
	case refused.Code == "unauthorized":
		return "A code serves once, and until it has expired. Ask for a new one; for a device that was enrolled before, one that is made for it:\n" +
			"  caddy iottunnel code create --device " + device
	case refused.RetryAfter() > 0:
		return fmt.Sprintf("Try again in %v, with the same code.", refused.RetryAfter())
	case refused.Code == "bad_request":
		return "The message above says what the edge does not take."
	case refused.Code == "forbidden":
		return "Use wss://; or, on a network that you trust, have the edge configured with allow_plaintext."
	case refused.Code == "":
		return "Check host and port of --server: it has to be a site with `iottunnel agents`."
	}
	return "Try again later, with the same code."
}

// keeping is a file that is about to get its name. It is readable by its owner alone
// from its first moment on.
type keeping struct {
	path  string
	force bool // what is there may be replaced
	file  *os.File
}

// room is as much as a token needs, in bytes: it is taken before the code is used.
const room = 512

// newKeeping makes sure that a token can be kept at path.
func newKeeping(path string, force bool) (*keeping, error) {
	switch info, err := os.Lstat(path); {
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("%s is a folder; name a file", path)
	case err == nil && !force:
		return nil, fmt.Errorf("%s is there already, and may be the only copy of a secret: name another file, or replace it with --force", path)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("a secret cannot be kept there: %w", err)
	}
	k := &keeping{path: path, force: force, file: file}
	if _, err = file.WriteString(strings.Repeat("\n", room)); err == nil {
		err = file.Sync()
	}
	if err != nil {
		k.drop()
		return nil, fmt.Errorf("a secret cannot be kept there: %w", err)
	}
	return k, nil
}

// store gives the file its content and its name, at once, whatever happens.
func (k *keeping) store(token string) error {
	text := token + "\n"
	_, err := k.file.WriteAt([]byte(text), 0)
	if err == nil {
		err = k.file.Truncate(int64(len(text)))
	}
	if err == nil {
		err = k.file.Sync()
	}
	if closed := k.file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = k.name()
	}
	if folder, bad := os.Open(filepath.Dir(k.path)); bad == nil {
		// The code is used up: the name must outlive a loss of power, too. Not every
		// system can be asked for that.
		_, _ = folder.Sync(), folder.Close()
	}
	return err
}

// name gives the file its name.
func (k *keeping) name() error {
	if !k.force {
		// A link is never over another file. Where there are none the file is moved.
		err := os.Link(k.file.Name(), k.path)
		if err == nil || errors.Is(err, os.ErrExist) {
			if removed := os.Remove(k.file.Name()); err == nil {
				err = removed
			}
			k.file = nil
			return err
		}
	}
	if err := os.Rename(k.file.Name(), k.path); err != nil {
		return err
	}
	k.file = nil
	return nil
}

// drop forgets a file that has not got its name.
func (k *keeping) drop() {
	if k.file != nil {
		_, _ = k.file.Close(), os.Remove(k.file.Name()) // it may be closed
	}
}
