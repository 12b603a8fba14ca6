{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/* The image; call with a dict of the root and overriding values. */}}
{{- define "cilium.image" -}}
{{- $image := deepCopy .root.Values.image -}}
{{- include "cilium.overlay" (dict "below" $image "above" (.image | default dict)) -}}
{{- $tag := $image.tag | default (printf "v%s" .root.Chart.AppVersion) -}}
{{- if $image.useDigest -}}
{{- if not $image.digest }}{{ fail "image.useDigest=true needs image.digest (sha256:...)" }}{{ end -}}
{{- printf "%s:%s@%s" $image.repository $tag $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository $tag -}}
{{- end -}}
{{- end -}}

{{- define "cilium.pullPolicy" -}}
{{- (.image | default dict).pullPolicy | default .root.Values.image.pullPolicy -}}
{{- end -}}

{{/* Labels of every object; selectors have their own, which never change. */}}
{{- define "cilium.labels" -}}
app.kubernetes.io/part-of: cilium
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "cilium.annotations" -}}
{{- with merge (dict) (.more | default dict) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where the API server is, for a pod that cannot use its service. */}}
{{- define "cilium.apiServer" -}}
{{- with .Values.k8sServiceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.k8sServicePort }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | toString | quote }}
{{- end }}
{{- end -}}

{{/* The node and the namespace, by Cilium's names for the tools and by ours for the agent. */}}
{{- define "cilium.nodeEnv" -}}
{{- range list "K8S_NODE_NAME" "CILIUMD_NODE_NAME" }}
- name: {{ . }}
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: spec.nodeName
{{- end }}
{{- range list "CILIUM_K8S_NAMESPACE" "CILIUMD_K8S_NAMESPACE" }}
- name: {{ . }}
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: metadata.namespace
{{- end }}
{{- end -}}

{{/* The profile of the agent on a node, by its content: another one is another file. */}}
{{- define "cilium.seccompName" -}}
{{- printf "ciliumd/agent-%s.json" (.Files.Get "files/seccomp.json" | sha256sum | trunc 12) -}}
{{- end -}}

{{/* A container that has these capabilities and no other; one without any has the runtime's own profile. */}}
{{- define "cilium.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- if not . }}
seccompProfile:
  type: RuntimeDefault
{{- end }}
capabilities:
  drop: [ALL]
  {{- with . }}
  add:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Kubernetes before 1.30 has annotations for AppArmor; call with a dict of the root and container names. */}}
{{- define "cilium.appArmor" -}}
{{- $profile := dig "appArmorProfile" "type" "" .root.Values.podSecurityContext -}}
{{- if and (eq $profile "Unconfined") (semverCompare "<1.30.0-0" .root.Capabilities.KubeVersion.Version) }}
{{- range .containers }}
{{- if not (and (eq . "cilium-agent") (include "cilium.appArmorName" $.root)) }}
container.apparmor.security.beta.kubernetes.io/{{ . }}: unconfined
{{- end }}
{{- end }}
{{- end }}
{{- with include "cilium.appArmorName" .root }}
{{- if semverCompare "<1.30.0-0" $.root.Capabilities.KubeVersion.Version }}
container.apparmor.security.beta.kubernetes.io/cilium-agent: localhost/{{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The agent's own profile; what waits after a cleanup has none. */}}
{{- define "cilium.appArmorName" -}}
{{- if not .Values.cleanup.enabled }}{{ .Values.securityContext.appArmor.profile }}{{ end -}}
{{- end -}}

{{- define "cilium.podSecurityContext" -}}
{{- if semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version -}}
{{- toYaml (omit .Values.podSecurityContext "appArmorProfile") -}}
{{- else -}}
{{- toYaml .Values.podSecurityContext -}}
{{- end -}}
{{- end -}}

{{- define "cilium.cgroupHostRoot" -}}
{{- .Values.cgroup.hostRoot | default (ternary "/run/cilium/cgroupv2" "/sys/fs/cgroup" .Values.cgroup.autoMount.enabled) -}}
{{- end -}}
