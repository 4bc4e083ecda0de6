package deviceid

import (
	"errors"
	"strings"
)

// builtIn: macOS tells by the prefix; virtual interfaces have others.
func builtIn(name string) bool { return strings.HasPrefix(name, "en") }

func serial() (string, error) { return platform("IOPlatformSerialNumber") }

func machineID() (string, error) { return platform("IOPlatformUUID") }

// platform returns a property of the machine: a line `"KEY" = "VALUE"`.
func platform(key string) (string, error) {
	text, err := ask("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(text, `"`+key+`" = "`)
	value, _, found := strings.Cut(rest, `"`)
	if !found {
		return "", errors.New("ioreg does not tell: use another placeholder, or write the id out")
	}
	return value, nil
}
