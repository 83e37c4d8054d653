{{- define "reverse-http.name" -}}
{{- printf "%s-%s" .root.Release.Name .component | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "reverse-http.selector" -}}
app.kubernetes.io/name: {{ printf "reverse-http-%s" .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "reverse-http.labels" -}}
{{ include "reverse-http.selector" . }}
app.kubernetes.io/part-of: reverse-http
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "reverse-http.storeAddress" -}}
{{- .Values.store.memcachedAddress | default (printf "%s:11211" (include "reverse-http.name" (dict "root" . "component" "memcached"))) -}}
{{- end }}

{{- define "reverse-http.keys" -}}
{{- .Values.auth.existingConfigMap | default (include "reverse-http.name" (dict "root" . "component" "keys")) -}}
{{- end }}

{{- define "reverse-http.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* The pod of a service: root, component, values (its part of the values), args, volumes (name: source). */ -}}
{{- define "reverse-http.pod" -}}
metadata:
  labels:
    {{- include "reverse-http.labels" . | nindent 4 }}
  {{- with .values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  # Longer than --drain.delay and --drain.timeout together. There is no preStop hook: --drain.delay replaces it.
  terminationGracePeriodSeconds: {{ add .root.Values.drain.delaySeconds .root.Values.drain.timeoutSeconds 15 }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "reverse-http.selector" . | nindent 10 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    # so that this user can read the secret's files
    fsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: {{ .component }}
      image: {{ printf "%s:%s" .root.Values.image.repository (.root.Values.image.tag | default .root.Chart.AppVersion) }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        {{- toYaml .args | nindent 8 }}
        {{- with .values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        - name: POD_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
      ports:
        {{- range .ports }}
        - name: {{ .name }}
          containerPort: {{ .port }}
          protocol: {{ .protocol | default "TCP" }}
        {{- end }}
      startupProbe:
        httpGet: { path: /healthz, port: admin }
        periodSeconds: 1
        failureThreshold: 30
      livenessProbe:
        httpGet: { path: /healthz, port: admin }
        failureThreshold: 6
      readinessProbe:
        httpGet: { path: {{ .ready | quote }}, port: admin }
        periodSeconds: 2
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      securityContext:
        {{- include "reverse-http.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- range $name, $source := .volumes }}
        - name: {{ $name }}
          mountPath: /{{ $name }}
          readOnly: true
        {{- end }}
  volumes:
    {{- range $name, $source := .volumes }}
    - name: {{ $name }}
      {{- toYaml $source | nindent 6 }}
    {{- end }}
  {{- with .values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* What proxy and lb have besides their Deployment: budget, autoscaler, and the service that Prometheus reads. */ -}}
{{- define "reverse-http.companions" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "reverse-http.name" . }}
  labels:
    {{- include "reverse-http.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "reverse-http.selector" . | nindent 6 }}
---
# for Prometheus only
apiVersion: v1
kind: Service
metadata:
  name: {{ printf "%s-admin" (include "reverse-http.name" .) }}
  labels:
    {{- include "reverse-http.labels" . | nindent 4 }}
    app.kubernetes.io/component: admin
spec:
  clusterIP: None
  # keep scraping pods that drain
  publishNotReadyAddresses: true
  selector:
    {{- include "reverse-http.selector" . | nindent 4 }}
  ports:
    - name: admin
      port: 9090
      targetPort: admin
{{- with .values.autoscaling }}
{{- if .enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "reverse-http.name" $ }}
  labels:
    {{- include "reverse-http.labels" $ | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "reverse-http.name" $ }}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
    - type: Pods
      pods:
        metric:
          name: reverse_http_tunnels_active
        target:
          type: AverageValue
          averageValue: {{ .tunnels | quote }}
  behavior:
    scaleDown:
      # a pod that goes moves its agents and waits for its tunnels: one at a time
      stabilizationWindowSeconds: 600
      policies:
        - { type: Pods, value: 1, periodSeconds: {{ add $.root.Values.drain.delaySeconds $.root.Values.drain.timeoutSeconds 60 }} }
{{- end }}
{{- end }}
{{- end }}
