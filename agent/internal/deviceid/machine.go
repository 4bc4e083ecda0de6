package deviceid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

// This is the machine that the program runs on.
func This() Machine {
	return Machine{
		Interfaces: net.Interfaces,
		BuiltIn:    builtIn,
		Serial:     serial,
		Hostname:   os.Hostname,
		MachineID:  machineID,
	}
}

// firstFile returns the text of the first of the files that can be read, is not
// empty, and in which find, if given, finds something.
func firstFile(find func(text string) string, names ...string) (string, error) {
	var failed []string
	for _, name := range names {
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrPermission) {
			failed = append(failed, name+" (only root may read it)")
			continue
		}
		value := string(text)
		if find != nil {
			value = find(value)
		}
		if err == nil && strings.Trim(value, " \n\x00") != "" {
			return value, nil
		}
		failed = append(failed, name)
	}
	return "", fmt.Errorf("not found in %s: use another placeholder, or write the id out", strings.Join(failed, ", "))
}

// askTime bounds a program that is asked for a fact.
const askTime = 10 * time.Second

// ask returns the output of a program of the system.
func ask(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: use another placeholder, or write the id out", name, err)
	}
	return string(out), nil
}
