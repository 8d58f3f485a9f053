"""A sound to the text that is spoken in it: Whisper and its like, and encoders with a CTC head."""

from pressoir.extensions.task import Metric, Task, Tensor

# All are read as samples, and run in overlapping chunks.
CTC_TYPES = (
    *("wav2vec2", "hubert", "wavlm", "data2vec-audio", "wav2vec2-bert", "wav2vec2-conformer"),
    *("sew", "sew-d", "unispeech", "unispeech-sat"),
)

# By transformers' own `generate`, from a checkpoint.
TRANSFORMERS_TYPES = ("moonshine", "speech_to_text", "seamless_m4t", "seamless_m4t_v2", "gemma3n")

TASK = Task(
    name="automatic-speech-recognition",
    position=4,
    heads=(
        *("ForCTC", "ForSpeechSeq2Seq", "ForSpeechToText", "SpeechEncoderDecoderModel"),
        *("SeamlessM4TModel", "SeamlessM4Tv2Model", "WhisperForConditionalGeneration"),
        *("MoonshineForConditionalGeneration", "Speech2TextForConditionalGeneration"),
        *("Gemma3nForConditionalGeneration", "KyutaiSpeechToTextForConditionalGeneration"),
        *("GraniteSpeechForConditionalGeneration", "Qwen2AudioForConditionalGeneration"),
        "VoxtralForConditionalGeneration",
    ),
    model_types=("whisper", *CTC_TYPES, *TRANSFORMERS_TYPES),
    pytorch_only=("wav2vec2-bert", *TRANSFORMERS_TYPES),
    sound=True,
    adapter="pressoir.inference.automatic_speech_recognition:SpeechRecognizer",
    export="pressoir.export.encoder_decoder:run",
    read_data="pressoir.evaluation.datasets:recordings",
    required_data=("manifest",),
    languages=("source_language",),
    unit="recordings",
    predictor="pressoir.evaluation.child.predictors:recognition",
    remote="pressoir.evaluation.child.remote.model:recognition",
    estimate="pressoir.evaluation.estimates.sample_memory:SpeechMemory",
    score="pressoir.evaluation.report.scoring:recognition",
    metrics=(
        Metric("wer", "WER", lower_is_better=True, form="percent"),
        Metric("cer", "CER", lower_is_better=True, form="percent"),
    ),
    worker="pressoir.serving.worker.worker_model:open_recognizer",
    operations=("transcribe",),
    tier_settings=("max_new_tokens", "num_beams", "max_audio_s", "source_language"),
    kserve="pressoir.serving.http.kserve:transcribe",
    outputs=(Tensor("text", "BYTES", (-1,)),),
    parameters=("sampling_rate", "language", "max_new_tokens", "num_beams"),
)
