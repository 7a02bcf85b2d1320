package schemas

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// frozen is what Kubernetes says of a change to an object that is immutable.
const frozen = "field is immutable when `immutable` is set"

// configMap checks keys and size. Kubernetes' limit of a MiB lies above what
// Gantry stores at all (MaxObjectBytes), which is refused before.
func (p *problems) configMap(c *corev1.ConfigMap) {
	size := 0
	for _, key := range slices.Sorted(maps.Keys(c.Data)) {
		p.dataKey(key, "data")
		if _, twice := c.BinaryData[key]; twice {
			p.invalid(field.NewPath("data").Key(key), key, "duplicate of key present in binaryData")
		}
		size += len(c.Data[key])
	}
	for _, key := range slices.Sorted(maps.Keys(c.BinaryData)) {
		p.dataKey(key, "binaryData")
		size += len(c.BinaryData[key])
	}
	if size > corev1.MaxSecretSize {
		p.tooLong(field.NewPath(""), corev1.MaxSecretSize)
	}
}

func (p *problems) dataKey(key, list string) {
	if messages := validation.IsConfigMapKey(key); len(messages) > 0 {
		p.invalid(field.NewPath(list).Key(key), key, messages...)
	}
}

func (p *problems) configMapUpdate(updated, old *corev1.ConfigMap) {
	if old.Immutable == nil || !*old.Immutable {
		return
	}
	p.staysImmutable(updated.Immutable)
	p.sameData(updated.Data, old.Data, "data")
	p.sameData(updated.BinaryData, old.BinaryData, "binaryData")
}

func (p *problems) staysImmutable(immutable *bool) {
	if immutable == nil || !*immutable {
		p.forbidden(field.NewPath("immutable"), frozen)
	}
}

// sameData compares two maps; none and an empty one are the same.
func (p *problems) sameData(updated, old any, name string) {
	if reflect.ValueOf(updated).Len() == 0 && reflect.ValueOf(old).Len() == 0 {
		return
	}
	if !reflect.DeepEqual(updated, old) {
		p.forbidden(field.NewPath(name), frozen)
	}
}

// defaultSecret puts stringData, which is a way to write and never stored,
// into data.
func defaultSecret(s *corev1.Secret) {
	if len(s.StringData) > 0 && s.Data == nil {
		s.Data = make(map[string][]byte, len(s.StringData))
	}
	for key, value := range s.StringData {
		s.Data[key] = []byte(value)
	}
	s.StringData = nil
	orDefault(&s.Type, corev1.SecretTypeOpaque)
}

func (p *problems) secret(s *corev1.Secret) {
	at := field.NewPath("data")
	size := 0
	for _, key := range slices.Sorted(maps.Keys(s.Data)) {
		p.dataKey(key, "data")
		size += len(s.Data[key])
	}
	if size > corev1.MaxSecretSize {
		p.tooLong(at, corev1.MaxSecretSize)
	}
	has := func(key string) bool { _, ok := s.Data[key]; return ok }
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			p.required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), "")
		}
	case corev1.SecretTypeDockercfg:
		p.secretJSON(s, corev1.DockerConfigKey, at)
	case corev1.SecretTypeDockerConfigJson:
		p.secretJSON(s, corev1.DockerConfigJsonKey, at)
	case corev1.SecretTypeBasicAuth:
		if !has(corev1.BasicAuthUsernameKey) && !has(corev1.BasicAuthPasswordKey) {
			p.required(at.Key(corev1.BasicAuthUsernameKey), "")
			p.required(at.Key(corev1.BasicAuthPasswordKey), "")
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			p.required(at.Key(corev1.SSHAuthPrivateKey), "")
		}
	case corev1.SecretTypeTLS:
		for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
			if !has(key) {
				p.required(at.Key(key), "")
			}
		}
	}
}

// secretJSON wants a JSON object under a key. The message never shows it.
func (p *problems) secretJSON(s *corev1.Secret, key string, at *field.Path) {
	value, ok := s.Data[key]
	if !ok {
		p.required(at.Key(key), "")
		return
	}
	if err := json.Unmarshal(value, &map[string]any{}); err != nil {
		p.invalid(at.Key(key), "<secret contents redacted>", err.Error())
	}
}

func (p *problems) secretUpdate(updated, old *corev1.Secret) {
	p.unchanged(updated.Type, old.Type, "type")
	if old.Immutable != nil && *old.Immutable {
		p.staysImmutable(updated.Immutable)
		p.sameData(updated.Data, old.Data, "data")
	}
}
